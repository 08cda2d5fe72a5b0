"""Data sets of the hub: streamed, pinned to one commit."""

import hashlib
from collections.abc import Callable, Iterator

from depthcut.errors import DepthcutError, SettingsError, SourceError, nearest
from depthcut.settings import TextSettings
from depthcut.text.rows import Columns, Document, choose_columns, document_of


def open_hub_text(
    name: str, settings: TextSettings
) -> tuple[str, str, Callable[[], Iterator[Document]]]:
    """Name, digest and reader of a hub data set; nothing but its metadata is fetched yet.

    Raises:
        SourceError: No network, no such data set, or no access to it.
        SettingsError: No such configuration or split.
    """
    import datasets
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(name).sha
        configs = datasets.get_dataset_config_names(name, revision=commit)
        config = _chosen(settings.text_config, configs, name)
        splits = [
            str(split) for split in datasets.get_dataset_split_names(name, config, revision=commit)
        ]
    except DepthcutError:
        raise
    except Exception as error:
        raise SourceError(_explain(name, error)) from error
    split = settings.split
    if split.partition("[")[0] not in splits:
        raise SettingsError(
            f"the data set {name} has no split {split!r}{nearest(split, splits)}; "
            f"it has {', '.join(splits)}"
        )
    identity = f"{name}@{commit}/{config}/{split}"

    def documents() -> Iterator[Document]:
        try:
            rows = iter(
                datasets.load_dataset(name, config, split=split, revision=commit, streaming=True)
            )
            chosen: Columns | None = None
            for number, row in enumerate(rows):
                place = f"data set {name}, row {number}"
                chosen = chosen or choose_columns(row, settings.columns, f"data set {name}")
                yield document_of(row, chosen, place)
        except DepthcutError:
            raise
        except Exception as error:
            raise SourceError(_explain(name, error)) from error

    return name, hashlib.sha256(identity.encode()).hexdigest(), documents


def _chosen(config: str | None, configs: list[str], name: str) -> str:
    if config is not None and config not in configs:
        raise SettingsError(
            f"the data set {name} has no configuration {config!r}{nearest(config, configs)}; "
            f"it has {', '.join(configs)}"
        )
    if config is None and len(configs) > 1 and "default" not in configs:
        raise SettingsError(
            f"the data set {name} has several configurations: choose one with --text-config "
            f"from {', '.join(configs)}"
        )
    return config or ("default" if "default" in configs else configs[0])


def _explain(name: str, error: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return f"no access to the data set {name}: ask for it on its hub page, then set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return f"no data set {name} here or on the hub: check the name, or set HF_TOKEN if private"
    reason = (str(error).strip().splitlines() or [""])[0][:200]
    return (
        f"cannot reach the hub for the data set {name} ({type(error).__name__}: {reason}): "
        "check the network, or use a local file or --text builtin"
    )

"""Where the data of tasks lies: files in a folder, or data sets of the hub."""

from collections.abc import Iterator, Mapping
from glob import glob, has_magic
from pathlib import Path
from typing import Any

Config = Mapping[str, Any]
"""Of a task, as its YAML file says it."""


def local_files(config: Config, folder: str | None) -> list[str]:
    """The files that a task reads; none where its data is on the hub.

    Args:
        config: Of the task.
        folder: What relative names are relative to; None: where the command runs.
    """
    named = (config.get("dataset_kwargs") or {}).get("data_files")
    if named is None or config.get("dataset_path") not in ("json", "csv", "parquet", "text"):
        return []
    base = Path(folder or ".")
    local = (str((base / each).resolve()) for each in _flat(named) if "://" not in each)
    return [file for each in local for file in (_matching(each) or [each])]


def _matching(name: str) -> list[str]:
    """The files that a pattern such as data/*.jsonl stands for, as datasets reads them."""
    return sorted(glob(name, recursive=True)) if has_magic(name) else []  # noqa: PTH207


def why_unread(name: str, config: Config, folder: str | None, error: Exception) -> str:
    """What to do about data that cannot be read."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ImportError):
        return f"{name} needs a package that is not here: {reason}; install it by pip"
    hub = (config.get("metadata") or {}).get("hub")
    missing = [file for file in local_files(config, folder) if not Path(file).is_file()]
    if missing:
        where = f", or leave --data out where the hub can be reached (it is {hub})" if hub else ""
        return f"the data of {name} is not here: {missing[0]} is missing; put it there{where}"
    empty = [file for file in local_files(config, folder) if not Path(file).stat().st_size]
    if empty:
        return f"the data of {name} is empty: {empty[0]} holds no questions"
    if config.get("dataset_path") and not local_files(config, folder):
        return (
            f"the data of {name} is {config['dataset_path']} on the hub, which did not answer "
            f"({reason}); where there is no network, name the folder that holds its files with "
            "--data, and where depthcut does not know the task a folder of task files with "
            "--include"
        )
    return f"{name} cannot be loaded: {reason}; look into its task file and its data"


def _flat(named: object) -> Iterator[str]:
    if isinstance(named, str):
        yield named
    elif isinstance(named, Mapping):
        for each in named.values():
            yield from _flat(each)
    elif isinstance(named, list | tuple):
        for each in named:
            yield from _flat(each)

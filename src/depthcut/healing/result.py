"""The folder of a healed checkpoint: what it is made from, and what is carried over."""

from pathlib import Path

from depthcut.checkpoint.companions import companions
from depthcut.checkpoint.copying import copy_file
from depthcut.checkpoint.folder import open_checkpoint
from depthcut.errors import SettingsError
from depthcut.files import new_folder
from depthcut.model.loading import LoadedModel
from depthcut.model.quiet import quiet_transformers


def saved_base(loaded: LoadedModel, folder: Path) -> Path:
    """The folder, with the checkpoint of a model that is in memory only.

    Raises:
        SettingsError: The model is quantised, so its weights are not there.
    """
    if getattr(loaded.model, "is_quantized", False):
        raise SettingsError(
            "a quantised model in memory cannot be healed: give its checkpoint's folder, whose "
            "weights the adapters are merged into"
        )
    if not folder.exists():
        with new_folder(folder) as working, quiet_transformers():
            loaded.model.save_pretrained(working)
            if loaded.tokenizer is not None:
                loaded.tokenizer.save_pretrained(working)
    return folder


def copy_base(folder: Path, working: Path) -> None:
    """Put the checkpoint that is to be changed into an empty folder, without its model card.

    Raises:
        CheckpointError: The checkpoint's folder is damaged.
    """
    checkpoint = open_checkpoint(folder)
    names = [Path("config.json"), *(Path(shard.file.name) for shard in checkpoint.shards)]
    names += [Path(path.name) for path in folder.glob("*.safetensors.index.json")]
    names += companions(folder, checkpoint.config)
    names += [Path("plan.json")] if (folder / "plan.json").is_file() else []
    for name in names:
        (working / name).parent.mkdir(exist_ok=True)
        copy_file(folder / name, working / name)

"""The folder of a healed checkpoint: what is carried over, and what it says of itself."""

from pathlib import Path

from depthcut.checkpoint.companions import companions
from depthcut.checkpoint.copying import copy_file
from depthcut.checkpoint.folder import open_checkpoint
from depthcut.errors import SettingsError
from depthcut.model.loading import LoadedModel
from depthcut.model.quiet import quiet_transformers


def copy_base(loaded: LoadedModel, working: Path) -> None:
    """Put the checkpoint that is to be changed into an empty folder, without its model card.

    Raises:
        SettingsError: The model is quantised and in memory only, so its weights are not there.
        CheckpointError: The checkpoint's folder is damaged.
    """
    if loaded.folder is None:
        if getattr(loaded.model, "is_quantized", False):
            raise SettingsError(
                "a quantised model in memory cannot be healed: give its checkpoint's folder, whose "
                "weights the adapters are merged into"
            )
        with quiet_transformers():
            loaded.model.save_pretrained(working)
            if loaded.tokenizer is not None:
                loaded.tokenizer.save_pretrained(working)
        return
    checkpoint = open_checkpoint(loaded.folder)
    names = [Path("config.json"), *(Path(shard.file.name) for shard in checkpoint.shards)]
    names += [Path(path.name) for path in loaded.folder.glob("*.safetensors.index.json")]
    names += companions(loaded.folder, checkpoint.config)
    names += [Path("plan.json")] if (loaded.folder / "plan.json").is_file() else []
    for name in names:
        (working / name).parent.mkdir(exist_ok=True)
        copy_file(loaded.folder / name, working / name)

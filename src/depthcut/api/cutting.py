"""From a model and a plan to a smaller model, and what can be cut: slice, verify, inspect."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from depthcut.errors import ArchitectureError, SettingsError, SourceError
from depthcut.records import (
    Inspection,
    Origin,
    Plan,
    SliceRecord,
    Verification,
    inputs_digest,
    read_record,
)
from depthcut.settings import LoadSettings
from depthcut.version import __version__

_log = logging.getLogger(__name__)


def slice(
    model: str | Path,
    plan: Plan | str | Path,
    out: Path,
    *,
    shard_bytes: int | None = None,
    zero: bool = False,
    other_model: bool = False,
    link: bool = False,
    base: str | None = None,
    load: LoadSettings | None = None,
) -> SliceRecord:
    """Write the checkpoint, GGUF file or adapter that a plan describes, byte for byte.

    A model of a type that depthcut does not know is proved by building it; this imports torch.

    Args:
        model: A source: smollm2, a folder, a hub id, a .gguf file; or the folder of a PEFT adapter
            of the plan's model.
        plan: A plan or its file.
        out: The folder to be, or the .gguf file where the source is one; it must not exist.
        shard_bytes: At most so many bytes in a weight file; default: the parent's files.
        zero: Whether weights may become zero: where a plan takes attention or MLP alone, the last
            projection is written as zeros. The result is exact and loads anywhere; it is neither
            smaller nor faster for it.
        other_model: Whether the plan may come from another model of the same shape. A GGUF file
            may always be cut into another by such a plan.
        link: Share bytes with the parent instead of copying them, where the file system can. A
            file that becomes a hard link is one with the parent's: who writes into it changes both.
        base: For an adapter: its cut base, as PEFT shall find it.
        load: Revision of a hub model, and whether code that comes with the model may run.

    Raises:
        DepthcutError: One of its kinds, see `depthcut.errors`.
    """
    from depthcut.model.sources import gguf_file, locate
    from depthcut.slicing import slice_checkpoint
    from depthcut.slicing.adapter import is_adapter, slice_adapter

    load, out = load or LoadSettings(), Path(out)
    plan = plan if isinstance(plan, Plan) else read_record(Path(plan), Plan)
    given = {
        "shard-bytes": shard_bytes is not None,
        "zero": zero,
        "other-model": other_model,
        "link": link,
        "base": base is not None,
    }
    if is_adapter(Path(model)):
        _refuse_given(given, {"base"}, "a PEFT adapter")
        return slice_adapter(Path(model), plan, out, base=base)
    if out.suffix.lower() == ".gguf":
        file = gguf_file(model)
        if file is None:
            raise SettingsError(
                f"{out}: a GGUF file is cut from a GGUF file, and {model} is none; name a folder "
                "with --out, and convert the result"
            )
        _refuse_given(given, {"other-model"}, "a GGUF file")
        return _slice_gguf(file, plan, out)
    _refuse_given(given, {"shard-bytes", "zero", "other-model", "link"}, "a model")
    folder = locate(model, load)
    return slice_checkpoint(
        folder,
        plan,
        out,
        shard_bytes=shard_bytes,
        source=str(model),
        zero=zero,
        other_model=other_model or is_of_gguf(plan, model),
        link=link,
        verify=proof(folder, plan, load),
    )


def verify(
    folder: str | Path,
    *,
    against: str | Path | None = None,
    loading: bool = True,
    load: LoadSettings | None = None,
) -> Verification:
    """Prove that a sliced folder holds what its plan makes of its parent, byte for byte.

    Args:
        folder: A folder that `slice` wrote.
        against: The parent; default: the one that its record names.
        loading: Also prove that transformers builds the model from it, layer for layer as in the
            parent. Imports torch; reads no weights.
        load: Revision of a hub model, and whether code that comes with the model may run.

    Raises:
        CheckpointError: Something differs, and what.
        DepthcutError: One of its kinds, see `depthcut.errors`.
    """
    from depthcut.model.sources import locate
    from depthcut.slicing.adapter import is_adapter
    from depthcut.slicing.checkpoint import RECORD_FILE
    from depthcut.slicing.verify import verify_slice

    folder, load = Path(folder), load or LoadSettings()
    if folder.is_file() or is_adapter(folder):
        raise SettingsError(f"{folder} is no sliced checkpoint: only such a folder can be proved")
    record_of_slice = read_record(folder / RECORD_FILE, SliceRecord)
    plan = record_of_slice.plan
    source = record_of_slice.parent.source if against is None else against
    try:
        parent = locate(source, load)
    except SourceError as error:
        if against is not None:
            raise
        raise SourceError(f"{error}; name the model that was cut with --against") from error
    record = verify_slice(folder, parent)
    if loading:
        from depthcut.model.verification import check_build

        trusted = load.trust_remote_code
        check_build(folder, parent, plan.kept_layers, trust_remote_code=trusted)
        record = msgspec.structs.replace(record, loads=True)
    return record


def inspect(model: str | Path, *, load: LoadSettings | None = None) -> Inspection:
    """What depthcut sees in a model and what of it cannot be cut; reads no weights.

    Args:
        model: A source: smollm2, a folder, a hub id, a .gguf file.
        load: Revision of a hub model.

    Raises:
        DepthcutError: One of its kinds, see `depthcut.errors`.
    """
    from depthcut.model.sources import EMBEDDED, gguf_file, locate
    from depthcut.slicing import inspect_checkpoint, inspect_gguf

    file = None if model == EMBEDDED else gguf_file(model)
    if file is not None:
        return inspect_gguf(file, source=str(model))
    return inspect_checkpoint(locate(model, load or LoadSettings()), source=str(model))


def refuse_impossible(source: str | Path, plan: Plan, load: LoadSettings | None) -> None:
    """Raise ArchitectureError where the config of a plan's model cannot say it."""
    from depthcut.checkpoint.folder import open_checkpoint
    from depthcut.model.sources import EMBEDDED, gguf_file, locate
    from depthcut.slicing.layout import refuse_computed

    if source == EMBEDDED or gguf_file(source) is None:
        checkpoint = open_checkpoint(locate(source, load or LoadSettings()))
        refuse_computed(checkpoint)
        checkpoint.cut_config(plan.kept_layers)


def proof(folder: Path, plan: Plan, load: LoadSettings) -> Callable[[Path], None]:
    """Proves a cut of a model type that the table lacks by building it; imports torch."""

    def prove(made: Path) -> None:
        from depthcut.checkpoint.folder import open_checkpoint
        from depthcut.model.verification import check_build

        kept = plan.kept_layers
        check_build(made, folder, kept, trust_remote_code=load.trust_remote_code)
        for assumed in open_checkpoint(folder).architecture.assumed:
            _log.warning("%s; transformers builds every layer of the result as it was", assumed)

    return prove


def is_of_gguf(plan: Plan, source: str | Path) -> bool:
    """Whether a plan was made for the very GGUF file whose dequantised form is cut."""
    from depthcut.gguf.model import gguf_facts
    from depthcut.model.sources import gguf_file

    file = gguf_file(source)
    try:
        return file is not None and gguf_facts(file, source="").digest == plan.model.digest
    except ArchitectureError:
        return False


def _refuse_given(given: Mapping[str, bool], known: set[str], what: str) -> None:
    for name, is_given in given.items():
        if is_given and name not in known:
            raise SettingsError(f"--{name} means nothing for {what}: leave it out")


def _slice_gguf(file: Path, plan: Plan, out: Path) -> SliceRecord:
    """A GGUF file has no room beside it: the plan goes into its metadata."""
    from depthcut.gguf.model import OWN_PREFIX, gguf_facts
    from depthcut.slicing.gguf import slice_gguf
    from depthcut.slicing.layout import check_plan
    from depthcut.slicing.zeroing import refuse_zeroed

    refuse_zeroed(plan, "a GGUF file")
    started = time.monotonic()
    parent = gguf_facts(file, source=str(file))
    check_plan(plan, parent, str(file), other_model=True)
    added = {
        "version": __version__,
        "change": f"{plan.model.layers} layers {plan.change}",
        "plan": msgspec.json.encode(plan).decode(),
    }
    own = {f"{OWN_PREFIX}{key}": text for key, text in added.items()}
    slice_gguf(file, plan.kept_layers, out, added=own)
    inputs = inputs_digest("slice gguf", plan.origin.inputs, *plan.slices)
    result = gguf_facts(out, source=str(out))
    return SliceRecord(
        origin=Origin.since(started, inputs=inputs), plan=plan, parent=parent, result=result
    )

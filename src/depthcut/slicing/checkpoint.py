"""Writing the checkpoint that a plan describes: byte ranges copied, names and config cut.

No tensor is decoded and none is held in memory: bytes go from file to file as they are.
"""

import json
import time
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path

from depthcut.architectures.names import ModuleNames
from depthcut.checkpoint.card import slice_card
from depthcut.checkpoint.companions import carry_companions, companions
from depthcut.checkpoint.copying import BLOCK_BYTES, link_file, write_ranges
from depthcut.checkpoint.folder import (
    INDEX_FILE,
    Checkpoint,
    model_facts,
    open_checkpoint,
)
from depthcut.checkpoint.headers import encode_header
from depthcut.checkpoint.pieces import Piece
from depthcut.errors import ArchitectureError
from depthcut.files import new_folder, refuse_existing
from depthcut.progress import progress
from depthcut.records import Origin, Plan, SliceRecord, inputs_digest, write_record
from depthcut.slicing.layout import (
    check_plan,
    cut_of,
    files_of,
    is_whole_file,
    refuse_computed,
)
from depthcut.slicing.zeroing import refuse_unless_zero, refuse_zeros
from depthcut.version import __version__

RECORD_FILE = "depthcut.json"
PLAN_FILE = "plan.json"

_PROGRESS_BYTES = 1 << 30
"""From this size on a copy may take seconds."""


def slice_checkpoint(
    folder: Path,
    plan: Plan,
    out: Path,
    *,
    shard_bytes: int | None = None,
    source: str | None = None,
    zero: bool = False,
    other_model: bool = False,
    link: bool = False,
    verify: Callable[[Path], None] | None = None,
) -> SliceRecord:
    """Write the checkpoint that a plan makes of `folder`.

    The weights are the parent's, bit for bit, but those that the plan zeroes. Beside them lie the
    cut config, all companions that still hold (tokenizer, chat template, licence), a model card,
    the plan and the record.

    Args:
        folder: A checkpoint folder of the model that the plan was made for.
        plan: Which layers make up the new model.
        out: The folder to be; it appears whole or not at all.
        shard_bytes: At most so many bytes in a weight file, if no single tensor is larger;
            None: the parent's files, without those that become empty.
        source: How the user named the folder; default: as the plan does.
        zero: Whether weights may become zero, which a plan with attention or MLP alone needs.
        other_model: Whether the plan may come from another model of the same shape, such as the
            one that this is a quantised copy of.
        link: Share bytes with the parent instead of copying them, where the file system can:
            blocks are cloned; where it cannot clone, files that stay as they are become hard links,
            so that whoever writes into one changes the other.
        verify: Called with the finished folder before it appears, where the model type is not in
            the table and what was derived of it must be proved; it raises to refuse.

    Raises:
        CheckpointError: The folder is broken or unsafe, or changed while it was read.
        ArchitectureError: The config cannot say this cut, the stack cannot be found, or zeros are
            not known to be right.
        PlanError: The plan is for another model, or keeps no, all or impossible layers, or asks
            for zeros.
        OutputError: `out` exists, cannot be written, or the disk is full.
    """
    started = time.monotonic()
    refuse_existing(out)
    checkpoint = open_checkpoint(folder)
    facts = model_facts(checkpoint, source=source or plan.model.source)
    check_plan(plan, facts, str(folder), other_model=other_model)
    refuse_unless_zero(plan, zero=zero)
    architecture, cut = checkpoint.architecture, cut_of(plan, checkpoint, facts.layers)
    refuse_zeros(checkpoint, cut)
    if architecture.assumed and verify is None:
        raise ArchitectureError(
            f"{architecture.assumed[0]}; such a cut must be verified by loading it"
        )
    refuse_computed(checkpoint)
    config = checkpoint.cut_config(cut.kept)
    config.pop("transformers_weights", None)  # ours have the usual names
    files = files_of(checkpoint, cut, shard_bytes)
    needed = 0 if link else _needed_bytes(checkpoint, files)
    with new_folder(out, needed_bytes=needed) as working:
        names = ModuleNames(architecture.stacks, cut)
        carry_companions(folder, checkpoint.config, working, names)
        _write_json(working / "config.json", config)
        _write_weights(working, checkpoint, files, link=link)
        checkpoint.refuse_changed()
        result = model_facts(open_checkpoint(working), source=str(out))
        card = slice_card(folder, plan, facts, result, name=out.name, version=__version__)
        (working / "README.md").write_text(card, encoding="utf-8")
        write_record(plan, working / PLAN_FILE)
        inputs = slice_inputs(plan, shard_bytes=shard_bytes)
        origin = Origin.since(started, inputs=inputs)
        record = SliceRecord(origin=origin, plan=plan, parent=facts, result=result)
        write_record(record, working / RECORD_FILE)
        if architecture.assumed and verify is not None:
            verify(working)
    return record


def slice_inputs(plan: Plan, *, shard_bytes: int | None = None) -> str:
    """Digest of everything a sliced checkpoint depends on: the `inputs` of its record's origin."""
    slices = [f"{each.start}:{each.stop}:{each.model or ''}" for each in plan.slices]
    slices += [f"{each.layer}.{each.part}" for each in plan.zeroed]
    return inputs_digest("slice", plan.origin.inputs, slices, plan.model.digest, str(shard_bytes))


def _needed_bytes(checkpoint: Checkpoint, files: Mapping[str, list[Piece]]) -> int:
    weights = sum(piece.size_bytes for group in files.values() for piece in group)
    headers = sum(256 + len(piece.name) for group in files.values() for piece in group)
    others = sum(
        (checkpoint.folder / path).stat().st_size
        for path in companions(checkpoint.folder, checkpoint.config)
    )
    return weights + headers + others + (1 << 20)


def _write_weights(
    working: Path, checkpoint: Checkpoint, files: Mapping[str, list[Piece]], *, link: bool
) -> None:
    shards = {shard.file: shard for shard in checkpoint.shards}
    total = sum(piece.size_bytes for group in files.values() for piece in group)

    def write(done: Callable[[int], None]) -> None:
        for name, group in files.items():
            origin = shards[group[0].entry.file] if group else checkpoint.shards[0]
            if link and is_whole_file(group, origin):
                link_file(origin.file, working / name)
                done(origin.size_bytes)
                continue
            start = group[0].entry.start if group else 0
            head = encode_header(
                ((p.name, p.entry.dtype, p.shape, p.size_bytes) for p in group),
                {"format": "pt"} | origin.metadata,
                multiple=BLOCK_BYTES if link else 8,
                remainder=start % BLOCK_BYTES if link else 0,
            )
            ranges = chain.from_iterable(piece.ranges() for piece in group)
            write_ranges(working / name, head, ranges, done=done, share=link)

    if total >= _PROGRESS_BYTES:
        with progress("slice", total, unit="bytes") as advance:
            write(advance)
    else:
        write(lambda _: None)
    if len(files) > 1:
        _write_json(working / INDEX_FILE, _index(checkpoint, files))


def _index(checkpoint: Checkpoint, files: Mapping[str, list[Piece]]) -> dict[str, object]:
    old = checkpoint.index.get("metadata") if checkpoint.index else None
    metadata: dict[str, object] = dict(old) if isinstance(old, dict) else {}
    pieces = [piece for group in files.values() for piece in group]
    metadata["total_size"] = sum(piece.size_bytes for piece in pieces)
    if "total_parameters" in metadata:
        metadata["total_parameters"] = sum(piece.elements for piece in pieces)
    weight_map = {piece.name: name for name, group in files.items() for piece in group}
    return {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}


def _write_json(file: Path, value: Mapping[str, object]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

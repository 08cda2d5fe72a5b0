"""Writing the checkpoint that a plan describes: byte ranges copied, names and config cut.

No tensor is decoded and none is held in memory: bytes go from file to file as they are.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from depthcut.checkpoint.architectures import cut_config, find_architecture
from depthcut.checkpoint.card import slice_card
from depthcut.checkpoint.companions import carry_companions, companions
from depthcut.checkpoint.copying import ByteRange, write_ranges
from depthcut.checkpoint.fields import Cut
from depthcut.checkpoint.folder import (
    INDEX_FILE,
    SINGLE_FILE,
    Checkpoint,
    model_facts,
    open_checkpoint,
)
from depthcut.checkpoint.headers import TensorEntry, encode_header
from depthcut.checkpoint.names import LayerNames
from depthcut.errors import PlanError
from depthcut.files import new_folder, refuse_existing
from depthcut.progress import progress
from depthcut.records import ModelFacts, Origin, Plan, SliceRecord, inputs_digest, write_record
from depthcut.version import __version__

RECORD_FILE = "depthcut.json"
PLAN_FILE = "plan.json"

_PROGRESS_BYTES = 1 << 30
"""From this size on a copy may take seconds."""


def slice_checkpoint(
    folder: Path, plan: Plan, out: Path, *, shard_bytes: int | None = None
) -> SliceRecord:
    """Write the checkpoint that is left of `folder` once the plan's layers are gone.

    The weights are the parent's, bit for bit. Beside them lie the cut config, all companions
    that still hold (tokenizer, chat template, licence), a model card, the plan and the record.

    Args:
        folder: A checkpoint folder of the model that the plan was made for.
        plan: Which layers go.
        out: The folder to be; it appears whole or not at all.
        shard_bytes: At most so many bytes in a weight file, if no single tensor is larger;
            None: the parent's files, without those that become empty.

    Raises:
        CheckpointError: The folder is broken or unsafe.
        ArchitectureError: The model type is not supported, or its config cannot say this cut.
        PlanError: The plan is for another model, or removes no, all or impossible layers.
        OutputError: `out` exists, cannot be written, or the disk is full.
    """
    started = time.monotonic()
    refuse_existing(out)
    checkpoint = open_checkpoint(folder)
    facts = model_facts(checkpoint, source=plan.model.source)
    _check_plan(plan, facts, folder)
    cut = Cut(facts.layers, plan.kept_layers)
    stack = find_architecture(checkpoint.config).stack
    config = cut_config(checkpoint.config, cut.kept)
    config.pop("transformers_weights", None)  # ours have the usual names
    files = _name_files(list(_group(_kept_tensors(checkpoint, stack, cut), shard_bytes)))
    with new_folder(out, needed_bytes=_needed_bytes(checkpoint, files)) as working:
        carry_companions(folder, checkpoint.config, working, stack=stack, cut=cut)
        _write_json(working / "config.json", config)
        _write_weights(working, checkpoint, files)
        result = model_facts(open_checkpoint(working), source=str(out))
        card = slice_card(folder, plan, result, name=out.name, version=__version__)
        (working / "README.md").write_text(card, encoding="utf-8")
        write_record(plan, working / PLAN_FILE)
        inputs = slice_inputs(plan, shard_bytes=shard_bytes)
        record = SliceRecord(origin=Origin.since(started, inputs=inputs), plan=plan, result=result)
        write_record(record, working / RECORD_FILE)
    return record


def slice_inputs(plan: Plan, *, shard_bytes: int | None = None) -> str:
    """Digest of everything a sliced checkpoint depends on: the `inputs` of its record's origin."""
    removed = [f"{start}:{stop}" for start, stop in plan.removed]
    return inputs_digest("slice", plan.origin.inputs, removed, plan.model.digest, str(shard_bytes))


@dataclass(frozen=True, slots=True)
class _Kept:
    """A tensor that stays: its new name, and where its bytes lie now."""

    name: str
    entry: TensorEntry


def _check_plan(plan: Plan, facts: ModelFacts, folder: Path) -> None:
    if plan.model.digest != facts.digest:
        raise PlanError(
            f"the plan was made for {plan.model.source} (digest {plan.model.digest[:12]}, "
            f"{plan.model.layers} layers), {folder} is another model (digest {facts.digest[:12]}, "
            f"{facts.layers} layers): make a plan for it, or give the model the plan was made for"
        )
    position = 0
    for start, stop in plan.removed:
        if not position <= start < stop <= facts.layers:
            raise PlanError(
                f"the plan removes [{start}, {stop}): blocks must be ascending, apart and within "
                f"the model's layers 0–{facts.layers - 1}; correct or remake the plan"
            )
        position = stop
    if not plan.removed_layers:
        raise PlanError(f"the plan removes none of {facts.layers} layers: nothing to slice")
    if not plan.kept_layers:
        raise PlanError(f"the plan removes all {facts.layers} layers: keep at least one")


def _kept_tensors(checkpoint: Checkpoint, stack: str, cut: Cut) -> Iterator[_Kept]:
    """In the order of their bytes, so that neighbours can be copied at once."""
    names = LayerNames(stack)
    new_index = {old: new for new, old in enumerate(cut.kept)}
    for shard in checkpoint.shards:
        for entry in shard.tensors:
            layer = names.layer(entry.name)
            if layer is None:
                yield _Kept(entry.name, entry)
            elif layer in new_index:
                yield _Kept(names.renumber(entry.name, new_index[layer]), entry)


def _group(tensors: Iterator[_Kept], shard_bytes: int | None) -> Iterator[list[_Kept]]:
    """The tensors of each file to be."""
    group: list[_Kept] = []
    size_bytes = 0
    for tensor in tensors:
        if shard_bytes is None:
            full = bool(group) and group[-1].entry.file != tensor.entry.file
        else:
            full = bool(group) and size_bytes + tensor.entry.size_bytes > shard_bytes
        if full:
            yield group
            group, size_bytes = [], 0
        group.append(tensor)
        size_bytes += tensor.entry.size_bytes
    yield group


def _name_files(groups: list[list[_Kept]]) -> dict[str, list[_Kept]]:
    if len(groups) == 1:
        return {SINGLE_FILE: groups[0]}
    return {
        f"model-{number:05d}-of-{len(groups):05d}.safetensors": group
        for number, group in enumerate(groups, start=1)
    }


def _needed_bytes(checkpoint: Checkpoint, files: Mapping[str, list[_Kept]]) -> int:
    weights = sum(tensor.entry.size_bytes for group in files.values() for tensor in group)
    headers = sum(256 + len(tensor.name) for group in files.values() for tensor in group)
    others = sum(
        (checkpoint.folder / path).stat().st_size
        for path in companions(checkpoint.folder, checkpoint.config)
    )
    return weights + headers + others + (1 << 20)


def _write_weights(working: Path, checkpoint: Checkpoint, files: Mapping[str, list[_Kept]]) -> None:
    metadata = {shard.file: shard.metadata for shard in checkpoint.shards}
    total = sum(tensor.entry.size_bytes for group in files.values() for tensor in group)

    def write(done: Callable[[int], None]) -> None:
        for name, group in files.items():
            head = encode_header(
                ((t.name, t.entry.dtype, t.entry.shape, t.entry.size_bytes) for t in group),
                {"format": "pt"} | (metadata[group[0].entry.file] if group else {}),
            )
            ranges = (ByteRange(t.entry.file, t.entry.start, t.entry.stop) for t in group)
            write_ranges(working / name, head, ranges, done=done)

    if total >= _PROGRESS_BYTES:
        with progress("slice", total, unit="bytes") as advance:
            write(advance)
    else:
        write(lambda _: None)
    if len(files) > 1:
        _write_json(working / INDEX_FILE, _index(checkpoint, files))


def _index(checkpoint: Checkpoint, files: Mapping[str, list[_Kept]]) -> dict[str, object]:
    old = checkpoint.index.get("metadata") if checkpoint.index else None
    metadata: dict[str, object] = dict(old) if isinstance(old, dict) else {}
    kept = [tensor.entry for group in files.values() for tensor in group]
    metadata["total_size"] = sum(entry.size_bytes for entry in kept)
    if "total_parameters" in metadata:
        metadata["total_parameters"] = sum(entry.elements for entry in kept)
    weight_map = {tensor.name: name for name, group in files.items() for tensor in group}
    return {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}


def _write_json(file: Path, value: Mapping[str, object]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

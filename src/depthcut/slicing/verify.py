"""A sliced folder and its parent in, the proof that one is the plan's cut of the other out.

Every byte of every tensor is compared with the parent's. Nothing is decoded, nothing is loaded.
"""

import filecmp
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from depthcut.architectures.names import ModuleNames
from depthcut.checkpoint.companions import carry_companions, companions
from depthcut.checkpoint.copying import merge_ranges
from depthcut.checkpoint.folder import Checkpoint, model_facts, open_checkpoint
from depthcut.checkpoint.pieces import Piece
from depthcut.errors import CheckpointError, PlanError
from depthcut.progress import progress
from depthcut.records import (
    Origin,
    Plan,
    SliceRecord,
    Verification,
    inputs_digest,
    read_record,
)
from depthcut.slicing.checkpoint import PLAN_FILE, RECORD_FILE
from depthcut.slicing.layout import check_plan, cut_of, kept_pieces

_CHUNK_BYTES = 1 << 20
_PROGRESS_BYTES = 1 << 30
_NAMED = 3
"""So many findings are told, the others counted."""


def verify_slice(folder: Path, parent: Path) -> Verification:
    """Prove that a folder holds what its plan makes of `parent`, byte for byte.

    Compared are the names, dtypes, shapes and bytes of all tensors, the config, the files that
    are carried along, and the digests that the folder's own record gives.

    Args:
        folder: A folder that `slice_checkpoint` wrote.
        parent: The checkpoint that it was cut from.

    Raises:
        CheckpointError: Something differs: the first findings are named, the others counted. Or
            one of the folders is broken.
        PlanError: `parent` is not the model that the plan is for.
        RecordError: `folder` holds no record of a slice.
    """
    started = time.monotonic()
    record = read_record(folder / RECORD_FILE, SliceRecord)
    plan = record.plan
    source, made = open_checkpoint(parent), open_checkpoint(folder)
    facts = model_facts(source, source=record.parent.source)
    if facts.digest != record.parent.digest:
        raise PlanError(
            f"{folder} was cut from {record.parent.source} (digest {record.parent.digest[:12]}), "
            f"{parent} is another model (digest {facts.digest[:12]}): name that one with --against"
        )
    check_plan(plan, facts, str(parent), other_model=facts.digest != plan.model.digest)
    cut = cut_of(plan, source, facts.layers)
    pieces = {
        piece.name: piece
        for piece in kept_pieces(source.tensors.values(), source.architecture, cut)
    }
    config = source.cut_config(cut.kept)
    config.pop("transformers_weights", None)
    findings = [
        *_header_findings(pieces, made),
        *_byte_findings(pieces, made),
        *_config_findings(config, made.config),
        *_companion_findings(source, folder, ModuleNames(source.architecture.stacks, cut)),
    ]
    for checkpoint in (source, made):
        checkpoint.refuse_changed()
    findings += _record_findings(record, folder) if not findings else ()
    if findings:
        more = f"; and {len(findings) - _NAMED} more" if len(findings) > _NAMED else ""
        raise CheckpointError(
            f"{folder} is not what its plan makes of {parent}: {'; '.join(findings[:_NAMED])}{more}"
        )
    return Verification(
        origin=Origin.since(
            started, inputs=inputs_digest("verify", facts.digest, record.result.digest)
        ),
        folder=str(folder),
        parent=facts,
        result=record.result,
        tensors=len(pieces),
        tensor_bytes=made.weight_bytes,
        zeroed_tensors=sum(piece.zero for piece in pieces.values()),
        config_values=sum(1 for _ in _leaves(config)),
        companions=sum(1 for _ in companions(parent, source.config)),
    )


def _header_findings(pieces: Mapping[str, Piece], made: Checkpoint) -> Iterator[str]:
    for name in pieces.keys() - made.tensors.keys():
        yield f"tensor {name!r} is missing (the parent's {pieces[name].entry.name!r})"
    for name in made.tensors.keys() - pieces.keys():
        yield f"tensor {name!r} is none of the parent's"
    for name, piece in pieces.items():
        found = made.tensors.get(name)
        if found and (found.dtype, found.shape) != (piece.entry.dtype, piece.shape):
            yield (
                f"tensor {name!r} must be {piece.entry.dtype} of shape {list(piece.shape)}, found "
                f"{found.dtype} of shape {list(found.shape)}"
            )


def _byte_findings(pieces: Mapping[str, Piece], made: Checkpoint) -> Iterator[str]:
    comparable = [
        piece
        for name, piece in pieces.items()
        if name in made.tensors and made.tensors[name].size_bytes == piece.size_bytes
    ]
    total = sum(piece.size_bytes for piece in comparable)
    if total < _PROGRESS_BYTES:
        yield from _differing(comparable, made, lambda _: None)
        return
    with progress("verify", total, unit="bytes") as advance:
        yield from _differing(comparable, made, advance)


def _differing(
    pieces: Iterable[Piece], made: Checkpoint, done: Callable[[int], None]
) -> Iterator[str]:
    with ExitStack() as stack:
        handles: dict[Path, int] = {}

        def read(file: Path | None, start: int, size: int) -> bytes:
            if file is None:
                return bytes(size)
            if file not in handles:
                handles[file] = stack.enter_context(file.open("rb", buffering=0)).fileno()
            return os.pread(handles[file], size, start)

        for piece in pieces:
            found = made.tensors[piece.name]
            position = found.start
            for part in merge_ranges(piece.ranges()):
                for start in range(part.start, part.stop, _CHUNK_BYTES):
                    size = min(_CHUNK_BYTES, part.stop - start)
                    ours, theirs = read(found.file, position, size), read(part.file, start, size)
                    if ours != theirs:
                        yield _difference(piece, position - found.start, ours, theirs)
                        break
                    position += size
                    done(size)
                else:
                    continue
                break


def _difference(piece: Piece, offset: int, ours: bytes, theirs: bytes) -> str:
    pairs = enumerate(zip(ours, theirs, strict=False))
    first = next((at for at, (one, other) in pairs if one != other), min(len(ours), len(theirs)))
    if piece.zero:
        return f"tensor {piece.name!r} must be zero, and is not from its byte {offset + first:,} on"
    return (
        f"tensor {piece.name!r} differs from the parent's {piece.entry.name!r} "
        f"from its byte {offset + first:,} on"
    )


def _config_findings(expected: Mapping[str, object], found: Mapping[str, object]) -> Iterator[str]:
    wanted, there = dict(_leaves(expected)), dict(_leaves(found))
    for key in sorted(wanted.keys() | there.keys()):
        if wanted.get(key) != there.get(key):
            was, now = there.get(key, "nothing"), wanted.get(key, "nothing")
            yield f"config.json: {key} must be {_short(now)}, found {_short(was)}"


def _leaves(value: Mapping[str, object], path: str = "") -> Iterator[tuple[str, str]]:
    """Every value that is no object, by its path, as JSON: there True, 1 and 1.0 differ."""
    for key, entry in value.items():
        if isinstance(entry, dict) and entry:
            yield from _leaves(entry, f"{path}{key}.")
        else:
            yield f"{path}{key}", json.dumps(entry, ensure_ascii=False, sort_keys=True)


def _companion_findings(source: Checkpoint, folder: Path, names: ModuleNames) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="depthcut-verify-") as place:
        carry_companions(source.folder, source.config, Path(place), names)
        for relative in companions(source.folder, source.config):
            if not (folder / relative).is_file():
                yield f"the file {relative} is missing"
            elif not filecmp.cmp(Path(place) / relative, folder / relative, shallow=False):
                yield f"the file {relative} is not the parent's"


def _record_findings(record: SliceRecord, folder: Path) -> Iterator[str]:
    result = model_facts(open_checkpoint(folder), source=record.result.source)
    if result != record.result:
        name = next(
            name
            for name in record.result.__struct_fields__
            if getattr(result, name) != getattr(record.result, name)
        )
        yield (
            f"{RECORD_FILE}: result.{name} must be {_short(getattr(result, name))}, found "
            f"{_short(getattr(record.result, name))}"
        )
    if (folder / PLAN_FILE).is_file() and read_record(folder / PLAN_FILE, Plan) != record.plan:
        yield f"{PLAN_FILE} is not the plan of {RECORD_FILE}"
    for name in ("README.md", PLAN_FILE):
        if not (folder / name).is_file():
            yield f"the file {name} is missing"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

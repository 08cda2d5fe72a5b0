"""One mutated checkpoint: made, sliced, and judged by what plain Python makes of the same files."""

import contextlib
import json
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from types import FrameType
from typing import cast

import msgspec

from depthcut.architectures.configs import fields_of, with_surroundings
from depthcut.architectures.fields import Reference
from depthcut.checkpoint.folder import Checkpoint, model_facts, open_checkpoint
from depthcut.errors import DepthcutError
from depthcut.gguf.model import gguf_facts
from depthcut.records import LayerSlice, ModelFacts, Origin, Plan, read_record
from depthcut.settings import PlanSettings
from depthcut.slicing import slice_checkpoint
from depthcut.slicing.adapter import slice_adapter
from depthcut.slicing.gguf import slice_gguf
from tests.fuzz import plain
from tests.fuzz.bases import FOLDERS, LAYERS, TYPES, base, field_keys
from tests.fuzz.mutators import any_value, encode, mutated_bytes, mutated_header, mutated_json

MOST_SECONDS = 1.0
"""Of processor time: a busy machine is no failure."""
MOST_BYTES = 200 << 20
KINDS: Mapping[str, int] = {
    "header": 40,
    "index": 14,
    "config": 18,
    "fields": 14,
    "plan": 4,
    "companion": 2,
    "gguf": 5,
    "adapter": 3,
}
"""What is mutated, and how often of a hundred."""


@dataclass(frozen=True)
class Case:
    """A base with one file changed, and the layers to keep."""

    kind: str
    base: str
    file: str
    content: bytes
    kept: tuple[int, ...]

    def files(self) -> dict[str, bytes]:
        return {**base(self.base), self.file: self.content}


class TooSlowError(BaseException):
    """Nothing that is sliced may catch it."""


class WrongError(AssertionError):
    """A result that is not what plain Python makes of the same files."""


def drawn(seed: int, number: int) -> Case:
    """The case of a number: the same on every machine."""
    random = Random(f"{seed} {number}")
    kind = random.choices(list(KINDS), list(KINDS.values()))[0]
    name, file = _target(kind, random)
    content = base(name).get(file) or _plan_text(name)
    kept = _kept(random)
    if kind == "fields":
        content = _set_fields(name.removeprefix("type:"), random)
    elif file.endswith(".safetensors"):
        changed = mutated_header if random.random() < 0.6 else mutated_bytes
        content = changed(content, random)
    elif file.endswith(".json") and random.random() < 0.8:
        content = mutated_json(content, random)
    else:
        content = mutated_bytes(content, random)
    return Case(kind, name, file, content, kept)


def run(case: Case, place: Path) -> str:
    """Slice it within the limits; 'sliced', or the name of the DepthcutError.

    Raises:
        WrongError: A wrong result, or something left behind.
        TooSlowError: More processor time than a case may take.
        Exception: Anything else that came out of depthcut, which is a failure too.
    """
    folder, out = place / "in", place / "there" / "out"
    out.parent.mkdir(parents=True)
    for name, content in case.files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    try:
        with _limited_time():
            try:
                _slice(case, folder, out)
                outcome = "sliced"
            except DepthcutError as error:
                outcome = type(error).__name__
                if "\n" in str(error).strip():
                    raise WrongError(f"a message of several lines: {error!r}") from error
        left = [path.name for path in out.parent.iterdir()]
        if left != (["out"] if outcome == "sliced" else []):
            raise WrongError(f"{outcome}, and {left} lies there")
        if outcome == "sliced":
            _judge(case, folder, out)
        return outcome
    finally:
        shutil.rmtree(place)


def failure_of(error: BaseException) -> str:
    """What went wrong, in a line: the exception and where in depthcut it came from."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/depthcut/" in f.filename]
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {str(error)[:200]}{where}"


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """The process may take 200 MB more than it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MOST_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextlib.contextmanager
def _limited_time() -> Iterator[None]:
    def stop(_: int, frame: FrameType | None) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGPROF, stop)
    started = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    if time.process_time() - started > MOST_SECONDS:
        raise TooSlowError  # a signal waits for a long step in C


def _target(kind: str, random: Random) -> tuple[str, str]:
    if kind == "header":
        name = random.choice(FOLDERS)
        return name, random.choice([f for f in base(name) if f.endswith(".safetensors")])
    if kind == "adapter":
        return kind, random.choice(("adapter_config.json",) * 3 + ("adapter_model.safetensors",))
    if kind == "companion":
        return "llama", random.choice(("README.md", "quantize_config.json"))
    if kind == "plan":
        return "llama", "plan.json"
    return {
        "index": lambda: ("sharded", "model.safetensors.index.json"),
        "config": lambda: (random.choice(FOLDERS), "config.json"),
        "fields": lambda: (random.choice(TYPES), "config.json"),
        "gguf": lambda: ("gguf", "model.gguf"),
    }[kind]()


def _kept(random: Random) -> tuple[int, ...]:
    drawn = random.random()
    if drawn < 0.15:
        return tuple(random.choices(range(LAYERS), k=random.randint(1, 9)))
    size = random.randint(1, 3)
    start = random.randint(0, LAYERS - size)
    if drawn < 0.6:
        return (*range(start), *range(start + size, LAYERS))
    return tuple(sorted(random.sample(range(LAYERS), random.randint(1, LAYERS - 1))))


def _set_fields(model_type: str, random: Random) -> bytes:
    """A config whose keys that speak of layers have values that they hardly expect."""
    config = json.loads(base(f"type:{model_type}")["config.json"])
    part = next((value for value in config.values() if isinstance(value, dict)), config)
    keys = field_keys(model_type)
    for key in random.choices(keys, k=random.choice((1, 1, 2, 3, 4))):
        outer, _, inner = key.rpartition(".")
        part[outer or key] = {inner: any_value(random)} if outer else any_value(random)
    return encode(config)


def _slice(case: Case, folder: Path, out: Path) -> None:
    if case.kind == "gguf":
        facts = gguf_facts(folder / case.file, source="fuzz")
        assert facts.layers < 10**6
        slice_gguf(folder / case.file, case.kept, out)
    elif case.kind == "adapter":
        slice_adapter(folder, plan_of(_facts("llama"), case.kept), out)
    elif case.kind == "plan":
        slice_checkpoint(folder, read_record(folder / case.file, Plan), out)
    else:
        facts = model_facts(open_checkpoint(folder), source="fuzz")
        slice_checkpoint(folder, plan_of(facts, case.kept), out, verify=lambda _: None)


def plan_of(facts: ModelFacts, kept: tuple[int, ...]) -> Plan:
    """A plan of these layers, whatever they are."""
    origin = Origin(inputs="", seconds=0.0, created="", versions={}, machine="")
    return Plan(
        origin=origin,
        model=facts,
        settings=PlanSettings(),
        survey=None,
        slices=tuple(LayerSlice(start=layer, stop=layer + 1) for layer in kept),
        score=None,
        alternatives=(),
        warnings=(),
    )


@cache
def _facts(name: str) -> ModelFacts:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for file, content in base(name).items():
            path = Path(folder, file)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        return model_facts(open_checkpoint(Path(folder)), source="fuzz")


@cache
def _plan_text(name: str) -> bytes:
    slices = (LayerSlice(start=0, stop=2), LayerSlice(start=4, stop=6, model="fuzz"))
    plan = msgspec.structs.replace(plan_of(_facts(name), (0,)), slices=slices)
    return msgspec.json.encode(plan)


def _judge(case: Case, folder: Path, out: Path) -> None:
    """Raise WrongError if a sliced folder is not the right one."""
    if case.kind == "gguf":
        _judge_gguf(case, folder, out)
    elif case.kind == "adapter":
        _same(_cut_adapter(case, folder), plain.tensors_in(out / "adapter_model.safetensors"))
        json.loads((out / "adapter_config.json").read_bytes())
    else:
        kept = case.kept
        if case.kind == "plan":
            text = (folder / "plan.json").read_bytes().decode()
            plan = msgspec.json.decode(text, type=Plan)
            kept = plan.kept_layers
        _judge_folder(folder, out, kept)


def _judge_folder(folder: Path, out: Path, kept: tuple[int, ...]) -> None:
    source = open_checkpoint(folder)
    architecture = source.architecture
    expected = plain.cut(
        plain.tensors_of(folder),
        architecture.stacks,
        kept,
        source.layers,
        sliced={each.name: each.axis for each in architecture.sliced},
        first_only=architecture.first_only,
    )
    _same(expected, plain.tensors_of(out))
    result = open_checkpoint(out)
    if result.layers != len(kept):
        raise WrongError(f"{result.layers} layers instead of {len(kept)}")
    _judge_fields(source, result, kept)


def _judge_fields(source: Checkpoint, result: Checkpoint, kept: tuple[int, ...]) -> None:
    """Every field says of each new layer what it said of the old one."""
    before = with_surroundings(source.config, source.architecture)
    after = with_surroundings(result.config, source.architecture)
    for field in fields_of(source.config, source.architecture):
        said = field.read(before, source.layers)
        if said is None:
            continue
        wanted = [_followed(said[old], new, kept) for new, old in enumerate(kept)]
        found = field.read(after, len(kept))
        if found != wanted:
            raise WrongError(f"{field.keys}: {str(found)[:80]} instead of {str(wanted)[:80]}")


def _followed(value: object, new: int, kept: tuple[int, ...]) -> object:
    if not isinstance(value, Reference):
        return value
    return Reference(max(i for i in range(new) if kept[i] == value.layer))


def _cut_adapter(case: Case, folder: Path) -> dict[str, plain.Tensor]:
    stacks = [f"base_model.model.{path}" for path in ("model.layers", "layers")]
    held = plain.tensors_in(folder / "adapter_model.safetensors")
    return plain.cut(held, [*stacks, "model.layers"], case.kept, LAYERS)


def _judge_gguf(case: Case, folder: Path, out: Path) -> None:
    metadata, tensors = plain.gguf_in(folder / case.file)
    found_metadata, found = plain.gguf_in(out)
    if set(found_metadata) != set(metadata):
        raise WrongError("other keys")
    key = b"llama.block_count"
    before, after = metadata.get(key), found_metadata.get(key)
    if before is None or after is None:  # another architecture's
        raise WrongError("a file without a number of layers was cut")
    blocks = int.from_bytes(cast("bytes", before[1]), "little")
    left = int.from_bytes(cast("bytes", after[1]), "little")
    extra = blocks - LAYERS if b"llama.nextn_predict_layers" in metadata else 0
    if left - extra != len(case.kept):
        raise WrongError(f"{left} blocks for {len(case.kept)} layers")
    kept = (*case.kept, *range(LAYERS, LAYERS + extra))
    _same(plain.cut(tensors, ("blk",), kept, LAYERS), found)


def _same(expected: Mapping[str, plain.Tensor], found: Mapping[str, plain.Tensor]) -> None:
    if expected.keys() != found.keys():
        raise WrongError(f"tensors {sorted(expected.keys() ^ found.keys())[:3]} are only in one")
    for name, tensor in expected.items():
        if found[name] != tensor:
            raise WrongError(f"tensor {name!r} differs")

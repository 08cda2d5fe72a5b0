"""Random checkpoints, cuts and shard sizes, against plain Python that reads everything."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from depthcut.checkpoint.folder import model_facts, open_checkpoint
from depthcut.checkpoint.headers import DTYPE_BITS, encode_header
from depthcut.slicing import slice_checkpoint
from tests.fuzz import plain
from tests.fuzz.cases import plan_of

INDEX = "model.safetensors.index.json"
STACK = "model.layers"
FOREIGN = ("F4", "F6_E2M3", "F6_E3M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0")
"""What the safetensors package may not know yet."""


class Made(NamedTuple):
    """A checkpoint: which tensors, in which files, in which order."""

    layers: int
    files: list[list[tuple[str, str, tuple[int, ...]]]]
    kept: tuple[int, ...]
    shard_bytes: int | None


SHAPES = st.lists(st.sampled_from((0, 1, 2, 3, 8)), max_size=3).map(tuple)
DTYPES = st.sampled_from(sorted(DTYPE_BITS))


@st.composite
def checkpoints(draw: st.DrawFn) -> Made:
    """Tensors of every dtype, dealt out to one to five files in any order."""
    layers = draw(st.integers(2, 7))
    names = ["model.embed.weight", "lm_head.weight", "model.norm.weight"]
    for layer in range(layers):
        tails = draw(st.lists(st.sampled_from(("a.weight", "b", "c.q.scales")), unique=True))
        names += [f"{STACK}.{layer}.{tail}" for tail in (*tails, "norm.weight")]
    tensors = []
    for name in draw(st.permutations(names)):
        dtype, shape = draw(DTYPES), draw(SHAPES)
        if DTYPE_BITS[dtype] % 8:  # packed: whole bytes only
            shape = (*shape, 8)
        tensors.append((name, dtype, shape))
    count = draw(st.integers(1, 5))
    places = draw(st.lists(st.integers(0, count - 1), min_size=len(names), max_size=len(names)))
    files: list[list[tuple[str, str, tuple[int, ...]]]] = [[] for _ in range(count)]
    for tensor, place in zip(tensors, places, strict=True):
        files[place].append(tensor)
    kept = draw(
        st.lists(st.integers(0, layers - 1), min_size=1, max_size=layers + 2).filter(
            lambda chosen: chosen != list(range(layers))
        )
    )
    sizes = st.none() | st.sampled_from((1, 7, 64, 300, 1_000, 10**9))
    return Made(layers, [file for file in files if file], tuple(kept), draw(sizes))


def write(made: Made, folder: Path) -> None:
    folder.mkdir()
    config = {"model_type": "llama", "num_hidden_layers": made.layers, "hidden_size": 4}
    (folder / "config.json").write_text(json.dumps(config))
    weight_map = {}
    for number, tensors in enumerate(made.files, start=1):
        single = len(made.files) == 1
        name = "model.safetensors" if single else f"model-{number}-of-{len(made.files)}.safetensors"
        weight_map |= {tensor: name for tensor, _, _ in tensors}
        sized = [(tensor, dtype, shape, size(dtype, shape)) for tensor, dtype, shape in tensors]
        data = b"".join(Random(tensor).randbytes(each) for tensor, _, _, each in sized)
        (folder / name).write_bytes(encode_header(sized, {"format": "pt"}) + data)
    if len(made.files) > 1:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def size(dtype: str, shape: tuple[int, ...]) -> int:
    bits = DTYPE_BITS[dtype]
    for dimension in shape:
        bits *= dimension
    return bits // 8


def cut(made: Made, place: Path) -> tuple[dict[str, plain.Tensor], Path]:
    """What plain Python makes of it, and the folder that depthcut made."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    write(made, place / "in")
    plan = plan_of(model_facts(open_checkpoint(place / "in"), source="x"), made.kept)
    slice_checkpoint(place / "in", plan, place / "out", shard_bytes=made.shard_bytes)
    whole = plain.tensors_of(place / "in")
    return plain.cut(whole, (STACK,), made.kept, made.layers), place / "out"


on_disk = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@on_disk
@given(made=checkpoints())
def test_a_cut_equals_renaming_in_memory(tmp_path: Path, made: Made) -> None:
    expected, out = cut(made, tmp_path / "place")
    assert plain.tensors_of(out) == expected


@on_disk
@given(made=checkpoints())
def test_files_and_index_agree_and_the_reference_reads_them(tmp_path: Path, made: Made) -> None:
    expected, out = cut(made, tmp_path / "place")
    files = sorted(out.glob("*.safetensors"))
    held = {file.name: plain.tensors_in(file) for file in files}
    if len(files) == 1:
        assert files[0].name == "model.safetensors"
        assert not (out / INDEX).exists()
    else:
        index = json.loads((out / INDEX).read_bytes())
        total = sum(len(data) for _, _, data in expected.values())
        assert index["metadata"]["total_size"] == total
        assert index["weight_map"] == {t: name for name in held for t in held[name]}
        assert [file.name for file in files] == [
            f"model-{number:05d}-of-{len(files):05d}.safetensors"
            for number in range(1, len(files) + 1)
        ]
    for name, tensors in held.items():
        assert tensors, f"{name} is empty"
        sizes = [len(data) for _, _, data in tensors.values()]
        if made.shard_bytes is not None:
            assert sum(sizes) <= max(made.shard_bytes, *sizes)
        if not any(dtype in FOREIGN for dtype, _, _ in tensors.values()):
            with safetensors.safe_open(out / name, framework="np") as opened:
                assert set(opened.keys()) == set(tensors)
                assert all(tuple(opened.get_slice(t).get_shape()) == tensors[t][1] for t in tensors)


@on_disk
@given(made=checkpoints())
def test_one_file_and_many_hold_the_same(tmp_path: Path, made: Made) -> None:
    together = made._replace(files=[[t for file in made.files for t in file]], shard_bytes=1)
    apart = made._replace(shard_bytes=10**9)
    _, many = cut(together, tmp_path / "many")
    _, one = cut(apart, tmp_path / "one")
    assert len(list(one.glob("*.safetensors"))) == 1
    assert plain.tensors_of(many) == plain.tensors_of(one)


def rename(tensors: dict[str, plain.Tensor]) -> dict[str, plain.Tensor]:
    return {name.replace(f"{STACK}.0.", f"{STACK}.1."): each for name, each in tensors.items()}


def flip(tensors: dict[str, plain.Tensor]) -> dict[str, plain.Tensor]:
    name, (dtype, shape, data) = next((n, t) for n, t in tensors.items() if t[2])
    return {**tensors, name: (dtype, shape, bytes([data[0] ^ 1]) + data[1:])}


@pytest.mark.parametrize("spoil", [rename, flip])
def test_the_oracle_sees_a_difference(
    tmp_path: Path, spoil: Callable[[dict[str, plain.Tensor]], dict[str, plain.Tensor]]
) -> None:
    files = [[(f"{STACK}.{layer}.a", "F32", (2,)) for layer in range(3)]]
    expected, out = cut(Made(3, files, (2, 0), None), tmp_path / "place")
    assert spoil(expected) != plain.tensors_of(out) == expected

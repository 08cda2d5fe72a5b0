"""Safetensors headers: what the reference library writes is read; every lie is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from depthcut.checkpoint.headers import DTYPE_BITS, encode_header, read_header
from depthcut.errors import CheckpointError

NUMPY_DTYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "I16": np.int16,
    "U16": np.uint16,
    "F16": np.float16,
    "I32": np.int32,
    "U32": np.uint32,
    "F32": np.float32,
    "F64": np.float64,
    "I64": np.int64,
    "U64": np.uint64,
}
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
TENSORS = st.dictionaries(
    st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(sorted(NUMPY_DTYPES)), SHAPES),
    min_size=1,  # the reference writes broken JSON for no tensors and empty metadata
    max_size=6,
)
METADATA = st.none() | st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3)
on_disk = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def file_of(fields: object, data: bytes = b"", *, announced: int | None = None) -> bytes:
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    length = len(body) if announced is None else announced
    return length.to_bytes(8, "little") + body + data


def tensor(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> object:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@on_disk
@given(tensors=TENSORS, metadata=METADATA)
def test_what_the_reference_writes_is_read(
    tmp_path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str] | None
) -> None:
    file = tmp_path / "x.safetensors"
    arrays = {name: np.ones(shape, NUMPY_DTYPES[dtype]) for name, (dtype, shape) in tensors.items()}
    save_file(arrays, file, metadata=metadata)
    header = read_header(file)
    assert header.metadata == (metadata or {})
    found = {entry.name: (entry.dtype, entry.shape) for entry in header.tensors}
    assert found == tensors
    content = file.read_bytes()
    for entry in header.tensors:
        assert content[entry.start : entry.stop] == arrays[entry.name].tobytes()
        assert entry.elements == arrays[entry.name].size


@on_disk
@given(tensors=TENSORS, metadata=st.dictionaries(st.text(max_size=8), st.text(max_size=8)))
def test_what_we_write_the_reference_reads(
    tmp_path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]
) -> None:
    arrays = {name: np.ones(shape, NUMPY_DTYPES[dtype]) for name, (dtype, shape) in tensors.items()}
    # widest elements first keeps each tensor at a multiple of its element's size
    order = sorted(arrays, key=lambda name: -arrays[name].itemsize)
    head = encode_header(((name, *tensors[name], arrays[name].nbytes) for name in order), metadata)
    file = tmp_path / "x.safetensors"
    file.write_bytes(head + b"".join(arrays[name].tobytes() for name in order))
    assert len(head) % 8 == 0
    with safetensors.safe_open(file, framework="np") as opened:
        assert (opened.metadata() or {}) == metadata
        assert set(opened.keys()) == set(arrays)
        for name, array in arrays.items():
            assert np.array_equal(opened.get_tensor(name), array)
    assert [entry.name for entry in read_header(file).tensors if entry.size_bytes] == [
        name for name in order if arrays[name].nbytes
    ]


VALID = save(
    {"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float16)}, metadata={"format": "pt"}
)


@on_disk
@given(
    change=st.one_of(
        st.tuples(st.just("flip"), st.integers(0, len(VALID) - 1), st.integers(1, 255)),
        st.tuples(st.just("cut"), st.integers(0, len(VALID) - 1), st.just(0)),
        st.tuples(st.just("add"), st.integers(1, 20), st.integers(0, 255)),
        st.tuples(st.just("drop"), st.integers(0, len(VALID) - 1), st.integers(1, 20)),
    )
)
def test_damaged_files_never_raise_anything_else(
    tmp_path: Path, change: tuple[str, int, int]
) -> None:
    kind, at, value = change
    content = {
        "flip": lambda: VALID[:at] + bytes([VALID[at] ^ value]) + VALID[at + 1 :],
        "cut": lambda: VALID[:at],
        "add": lambda: VALID + bytes([value]) * at,
        "drop": lambda: VALID[:at] + VALID[at + value :],
    }[kind]()
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    try:
        ours = read_header(file)
    except CheckpointError:
        return
    # What we take, the reference takes too: a flip inside a name or the data is no damage.
    with safetensors.safe_open(file, framework="np") as opened:
        assert set(opened.keys()) == {entry.name for entry in ours.tensors}


@on_disk
@given(content=st.binary(max_size=64))
def test_noise_never_raises_anything_else(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError):
        read_header(file)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@on_disk
@given(fields=st.dictionaries(st.text(max_size=5), JSON, min_size=1))
def test_other_json_never_raises_anything_else(tmp_path: Path, fields: object) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(file_of(fields))
    with pytest.raises(CheckpointError):
        read_header(file)


LIES: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "too few"),
    "no header": (bytes(7), "too few"),
    "header longer than the file": (file_of({}, announced=1000), "1,000 bytes that it announces"),
    "header longer than allowed": (file_of({}, announced=2**63), "more than the format allows"),
    "header of length 0": (file_of(b""), "not a JSON object"),
    "header that is a list": (file_of([]), "not a JSON object"),
    "header cut off": (file_of(b'{"a": '), "not JSON"),
    "header not UTF-8": (file_of(b'{"\xff": 1}'), "not JSON in UTF-8"),
    "header in UTF-16": (file_of("{}".encode("utf-16-le")), "not JSON"),
    "lone surrogate": (file_of(rb'{"\ud800": {}}'), "not JSON in UTF-8"),
    "lone surrogate in metadata": (file_of(rb'{"__metadata__": {"a": "\ud800"}}'), "not text"),
    "deep nesting": (file_of(b'{"a":' * 100_000), "not JSON"),
    "huge number": (file_of(b'{"a":' + b"9" * 5000 + b"}"), "not JSON"),
    "name twice": (
        file_of(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":1}', b"x"),
        "names 'a' twice",
    ),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata a list": (file_of({"__metadata__": []}), "__metadata__"),
    "entry not an object": (file_of({"a": 1}), "tensor 'a': its entry"),
    "unknown dtype": (file_of({"a": tensor("F31")}), "dtype 'F31' is none of BOOL"),
    "dtype a number": (file_of({"a": tensor(32)}), "dtype 32"),
    "shape missing": (file_of({"a": {"dtype": "F32", "data_offsets": [0, 4]}}), "shape None"),
    "shape negative": (file_of({"a": tensor(shape=[-1])}), "whole numbers"),
    "shape of booleans": (file_of({"a": tensor(shape=[True])}, bytes(4)), "whole numbers"),
    "shape of floats": (file_of({"a": tensor(shape=[1.0])}, bytes(4)), "whole numbers"),
    "shape beyond 64 bit": (file_of({"a": tensor(shape=[2**64, 0])}), "whole numbers"),
    "shape overflows": (file_of({"a": tensor(shape=[2**62] * 9)}), "no whole number of bytes"),
    "offsets backwards": (file_of({"a": tensor(offsets=[4, 0])}, bytes(4)), "a start and an end"),
    "offsets of three": (file_of({"a": tensor(offsets=[0, 4, 4])}, bytes(4)), "data_offsets"),
    "bytes do not fit the shape": (
        file_of({"a": tensor(shape=[2])}, bytes(4)),
        r"F32 of shape \[2\] needs 8 bytes, its offsets give 4",
    ),
    "half a byte": (file_of({"a": tensor("F4", [3], [0, 1])}, bytes(1)), "no whole number"),
    "offsets beyond the file": (file_of({"a": tensor()}, bytes(3)), "need 4 bytes, the file has 3"),
    "trailing bytes": (file_of({"a": tensor()}, bytes(5)), "need 4 bytes, the file has 5"),
    "overlap": (file_of({"a": tensor(), "b": tensor()}, bytes(4)), "'b' .* overlaps"),
    "gap": (file_of({"a": tensor(offsets=[1, 5])}, bytes(5)), "'a' .* leaves a gap"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_refused(tmp_path: Path, lie: str) -> None:
    content, message = LIES[lie]
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("make", [lambda file: None, lambda file: file.mkdir()])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"cannot read .*x\.safetensors"):
        read_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_every_dtype_of_the_format_is_read(tmp_path: Path, dtype: str) -> None:
    size_bytes = 8 * DTYPE_BITS[dtype] // 8
    file = tmp_path / "x.safetensors"
    file.write_bytes(file_of({"a": tensor(dtype, [2, 4], [0, size_bytes])}, bytes(size_bytes)))
    (entry,) = read_header(file).tensors
    assert (entry.dtype, entry.elements) == (dtype, 8)
    with safetensors.safe_open(file, framework="np") as opened:  # the reference knows it too
        assert opened.get_slice("a").get_shape() in ([2, 4], [2, 2])  # packed F4: two in a byte


def test_empty_and_scalar_tensors_are_read(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    fields = {"a": tensor(shape=[0, 7], offsets=[0, 0]), "b": tensor(shape=[], offsets=[0, 4])}
    file.write_bytes(file_of(fields, bytes(4)))
    assert [(entry.name, entry.elements) for entry in read_header(file).tensors] == [
        ("a", 0),
        ("b", 1),
    ]

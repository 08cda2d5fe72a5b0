"""The cache of what was measured: what is broken is measured again, what cannot be is told."""

import gzip
from pathlib import Path

import pytest

from depthcut.errors import OutputError
from depthcut.evaluation.kept import find, half_done, keep
from depthcut.records import Estimate


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEPTHCUT_CACHE", str(tmp_path))
    return tmp_path / "evaluations" / "key.json.gz"


def test_what_is_broken_counts_as_not_kept(cache: Path) -> None:
    record = Estimate(value=1.0, stderr=0.125)
    keep("key", record)
    whole = cache.read_bytes()
    assert find("key", Estimate) == record
    flipped = whole[:10] + b"\xff" * 8 + whole[18:]  # behind the head: no block of deflate
    for broken in (whole[:20], flipped, b"", b"no gzip", gzip.compress(b'{"a": 1}')):
        cache.write_bytes(broken)
        assert find("key", Estimate) is None


def test_a_cache_that_cannot_be_written_is_told_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DEPTHCUT_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="let DEPTHCUT_CACHE name a folder"):
        half_done("key", fresh=False)
    keep("key", Estimate(value=1.0, stderr=0.125))  # a warning, for the work is done

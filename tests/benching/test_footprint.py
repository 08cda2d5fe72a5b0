from pathlib import Path

import pytest

from depthcut.benching.footprint import measure_footprint
from depthcut.settings import BenchSettings, LoadSettings
from tests.tiny import build_tiny, save_tiny

SETTINGS = BenchSettings(prompt_tokens=16, new_tokens=4)


def test_footprint_sees_the_weights_and_not_the_callers_memory(tmp_path: Path) -> None:
    model = build_tiny("llama", layers=2, hidden_size=512, intermediate_size=4096, head_dim=128)
    save_tiny(model, tmp_path)
    ballast = bytearray(400 * 2**20)
    found = measure_footprint(tmp_path, SETTINGS, LoadSettings())
    weights = sum(weight.numel() * 4 for weight in model.parameters())
    assert found is not None
    assert len(ballast) > 4 * weights
    assert weights < found < 4 * weights + 50 * 2**20


def test_a_footprint_that_cannot_be_measured_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = BenchSettings(engine="llama.cpp")  # does without torch
    assert measure_footprint(tmp_path / "none.gguf", settings, LoadSettings()) is None
    assert "no memory measured for" in caplog.text
    assert "no file" in caplog.text

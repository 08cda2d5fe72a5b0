"""States kept beyond memory: in a file that may be full."""

import os

import pytest
import torch

from depthcut.errors import OutputError
from depthcut.model.kept_states import KeptStates


def test_what_does_not_fit_in_memory_comes_back_as_it_was() -> None:
    kept, cpu = KeptStates(100), torch.device("cpu")
    states = {
        number: torch.randn(3, 5).to(dtype)
        for number, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16) * 3)
    }
    for number, state in states.items():
        kept.put(number, state)
    kept.discard([0, 4, 6])
    kept.put("again", states[6])
    for number in set(states) - {0, 4, 6}:
        assert torch.equal(kept.get(number, cpu), states[number])
    assert torch.equal(kept.get("again", cpu), states[6])
    assert 4 not in kept


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    kept = KeptStates(0)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match=r"No space left .* set TMPDIR"):
        kept.put("a", torch.zeros(3))
    assert "a" not in kept

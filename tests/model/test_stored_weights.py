from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from depthcut.checkpoint.folder import open_checkpoint
from depthcut.errors import ArchitectureError
from depthcut.model.stored_weights import find_weight, read_weight, write_weight


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_is_rounded_to_its_file_and_no_other_byte_changes(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    before = {name: torch.randn(3, 5, generator=generator).to(dtype) for name in ("a", "b", "c")}
    save_file(before, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text("{}")
    entry = find_weight(open_checkpoint(tmp_path), "b", (3, 5))
    assert read_weight(entry).equal(before["b"])
    new = torch.randn(5, 3, dtype=torch.float64, generator=generator).T  # not contiguous
    write_weight(entry, new)
    after = load_file(tmp_path / "model.safetensors")
    assert after["b"].equal(new.to(dtype))
    assert after["a"].equal(before["a"])
    assert after["c"].equal(before["c"])


def test_what_cannot_be_changed_is_refused(tmp_path: Path) -> None:
    save_file(
        {"a.weight": torch.zeros(2, 3), "q.weight": torch.zeros(2, 3, dtype=torch.uint8)},
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(ArchitectureError, match=r"no tensor model\.b\.weight"):
        find_weight(checkpoint, "model.b.weight", (2, 3))
    with pytest.raises(ArchitectureError, match=r"has shape \(2, 3\), in memory it has \(3, 2\)"):
        find_weight(checkpoint, "model.a.weight", (3, 2))
    with pytest.raises(ArchitectureError, match="stored as U8"):
        find_weight(checkpoint, "q.weight", (2, 3))

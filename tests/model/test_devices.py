import pytest
import torch

from depthcut.errors import SettingsError
from depthcut.model import devices
from depthcut.model.devices import choose_device, choose_dtype, cpu_has_bfloat16

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def test_a_device_is_obeyed() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("map") is None


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "meta", ""])
def test_what_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="choose auto, cpu"):
        choose_device(name)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match=r"cuda was asked for, but torch .* sees no CUDA GPU"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SettingsError, match="cuda:1 was asked for, but there are 1"):
        choose_device("cuda:1")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="mps was asked for"):
        choose_device("mps")


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for there, expected in ((True, CUDA), (False, CPU)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert choose_device("auto") == expected


@pytest.mark.parametrize(
    ("checkpoint", "fast", "expected"),
    [
        (BF16, True, BF16),
        (BF16, False, FP32),
        (FP16, True, BF16),
        (FP16, False, FP32),
        (FP32, True, FP32),
        (None, True, None),
    ],
)
def test_auto_keeps_the_checkpoint_s_dtype_where_a_cpu_is_fast_at_it(
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: torch.dtype | None,
    fast: bool,
    expected: torch.dtype | None,
) -> None:
    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: fast)
    assert choose_dtype("auto", checkpoint, CPU) == expected


@pytest.mark.parametrize(("native", "expected"), [(True, BF16), (False, FP16)])
def test_auto_takes_half_on_gpus_without_bfloat16(
    monkeypatch: pytest.MonkeyPatch, native: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert choose_dtype("auto", BF16, CUDA) == expected
    assert choose_dtype("auto", FP16, CUDA) == FP16


def test_a_dtype_is_obeyed() -> None:
    assert choose_dtype("float16", BF16, CPU) == FP16
    assert choose_dtype("float32", BF16, None) == FP32


def test_this_processor_says_whether_it_has_bfloat16() -> None:
    assert cpu_has_bfloat16() in (True, False)

"""Models shared out among processes while they train come to what one process comes to.

accelerate shares models out among GPUs only; torch does it among CPUs too, over gloo. So that both
can be tried here, its processes are told to do it on CPUs.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from depthcut import api
from depthcut.errors import SettingsError
from depthcut.healing.training import sharding
from depthcut.records import HealRecord, read_record
from depthcut.settings import DType, HealMethod, HealSettings, LoadSettings, PlanSettings
from tests.every_type import build
from tests.processes import together
from tests.tiny import build_tiny, save_tiny, tiny_tokenizer

LOAD = LoadSettings(device="cpu")
SHARED = "shared out:"


def on_cpus() -> None:
    """What each process does first."""
    from accelerate import state
    from accelerate.utils import DistributedType
    from torch.distributed import fsdp

    from depthcut.healing.training import sharding

    sharding.PLACES = ("cpu",)
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "true"  # as the launcher does
    begin = state.AcceleratorState.__init__

    def begin_shared(self: Any, *arguments: Any, fsdp_plugin: Any = None, **named: Any) -> None:
        begin(self, *arguments, fsdp_plugin=fsdp_plugin, **named)
        if fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    state.AcceleratorState.__init__ = begin_shared
    share = fsdp.fully_shard

    def told(module: Any, *arguments: Any, **named: Any) -> Any:
        sys.stderr.write(f"{SHARED} {type(module).__name__}\n")
        return share(module, *arguments, **named)

    fsdp.fully_shard = told


def on_cpus_until_killed() -> None:
    """The same, and in the third step it is killed."""
    from depthcut.healing.training.watching import Watch

    on_cpus()
    begin = Watch.on_step_begin

    def on_step_begin(self: Any, args: Any, state: Any, control: Any, **named: Any) -> None:
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        begin(self, args, state, control, **named)

    Watch.on_step_begin = on_step_begin  # type: ignore[method-assign]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"{number} bottles of beer on the wall" for number in range(400)))
    return path


def weights(folder: Path) -> dict[str, Any]:
    return {
        name: tensor
        for path in folder.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def saved(model_type: str, folder: Path) -> Path:
    save_tiny(build(model_type) if model_type == "deepseek_v3" else build_tiny(model_type), folder)
    tiny_tokenizer(folder)
    return folder


def arguments(folder: Path, text: Path, out: Path, *more: str) -> list[str]:
    found = f"heal {folder} --text {text} --context 24 --steps 4 --batch-size 4 --eval-every 2"
    return [*f"{found} --held-out-tokens 100 --device cpu --out {out}".split(), *more]


@pytest.mark.parametrize(
    ("model_type", "method", "dtype"),
    [
        ("llama", "full", "float32"),
        ("gpt2", "full", "bfloat16"),  # tied
        ("deepseek_v3", "lora", "float32"),  # with a buffer that is saved
    ],
)
def test_a_model_that_is_shared_out_comes_to_the_same(
    model_type: str, method: HealMethod, dtype: DType, text: Path, tmp_path: Path
) -> None:
    folder = saved(model_type, tmp_path / "model")
    settings = HealSettings(
        text=str(text),
        context=24,
        steps=4,
        batch_size=4,
        eval_every=2,
        held_out_tokens=100,
        method=method,
        micro_batch_size=1,
    )
    load = LoadSettings(device="cpu", dtype=dtype)
    alone = api.heal(folder, tmp_path / "alone", settings, load=load)
    more = f"--method {method} --dtype {dtype} --micro-batch-size 1".split()
    given = arguments(folder, text, tmp_path / "out", *more)
    for ended in together(given, 2, first=on_cpus):
        assert ended.code == 0, ended.messages
        assert ended.messages.count(SHARED) >= 6
    shared = read_record(tmp_path / "out" / "depthcut.json", HealRecord)
    assert shared.devices == 2
    assert shared.trained_tokens == alone.trained_tokens
    near = 1e-3 if dtype == "float32" else 1e-2
    for one, other in zip(alone.losses, shared.losses, strict=True):
        assert one == pytest.approx(other, rel=near)
    assert [each.loss for each in alone.judgements] == pytest.approx(
        [each.loss for each in shared.judgements], rel=near
    )
    before, mine, its = (weights(path) for path in (folder, tmp_path / "alone", tmp_path / "out"))
    assert mine.keys() == its.keys()
    changed = [name for name in mine if not mine[name].equal(before[name])]
    assert changed
    for name in changed if dtype == "float32" else ():
        moved = (mine[name] - before[name]).norm()
        assert (its[name] - mine[name]).norm() < 0.02 * moved


def test_killed_it_goes_on_to_the_same_weights(text: Path, tmp_path: Path) -> None:
    folder = saved("llama", tmp_path / "model")
    api.slice(folder, api.plan(folder, PlanSettings(remove="2-3")), tmp_path / "cut")
    more = [
        "--method",
        "full",
        "--teacher",
        "parent",
        "--loss",
        "hidden",
    ]  # which the head has no part in
    one, two = (
        arguments(tmp_path / "cut", text, tmp_path / name, *more) for name in ("one", "two")
    )
    for ended in together(one, 2, first=on_cpus):
        assert ended.code == 0, ended.messages
    assert together(two, 2, first=on_cpus_until_killed)[0].code == -signal.SIGKILL
    begun = {path.name for path in (tmp_path / "two.training" / "checkpoint-2").iterdir()}
    assert {"optimizer.bin", "scheduler.pt", "trained.safetensors"} <= begun
    assert not [name for name in begun if name.startswith("pytorch_model")]
    refused = "".join(ended.messages for ended in together(two, 2))  # not shared out this time
    assert "was begun by 2 processes that share a model out" in refused
    for ended in together(two, 2, first=on_cpus):
        assert ended.code == 0, ended.messages
    first, second = (
        read_record(tmp_path / name / "depthcut.json", HealRecord) for name in ("one", "two")
    )
    assert (first.losses, first.judgements) == (second.losses, second.judgements)
    assert second.starts > 1
    mine, its = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(its[name].equal(mine[name]) for name in mine)


@pytest.mark.parametrize(
    ("launcher", "settings", "processes", "message"),
    [
        ("FSDP", {"method": "qlora"}, 2, "launch with --multi_gpu instead of --use_fsdp"),
        ("FSDP", {"optimizer": "adafactor"}, 2, "choose adamw_torch or sgd, or launch with"),
        ("FSDP", {}, 1, "with several --num_processes"),
        ("DEEPSPEED", {}, 2, "launch with --multi_gpu, or with --use_fsdp"),
    ],
)
def test_what_is_not_shared_out_is_refused_before_anything_is_loaded(
    launcher: str,
    settings: dict[str, Any],
    processes: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{launcher}", "true")
    monkeypatch.setattr(sharding, "PLACES", ("cpu",))
    for name, value in {"RANK": 0, "WORLD_SIZE": processes}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(SettingsError, match=message):
        api.heal("nowhere", Path("out"), HealSettings(**settings), load=LOAD)


def test_models_are_not_shared_out_among_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCELERATE_USE_FSDP": "true", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match="among GPUs, not on cpu"):
        api.heal("nowhere", Path("out"), load=LOAD)

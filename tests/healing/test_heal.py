import json
import logging
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from depthcut import api
from depthcut.checkpoint.folder import open_checkpoint
from depthcut.errors import OutputError, SettingsError, SourceError, TextError
from depthcut.healing.heal import heal_checkpoint
from depthcut.healing.inputs import as_needed, check, heal_inputs
from depthcut.healing.losses.table import loss_weights
from depthcut.model.loading import LoadedModel, from_memory, load
from depthcut.planning import plan_by_hand
from depthcut.records import HealRecord, Plan, TextFacts, read_record, write_record
from depthcut.settings import HealSettings, LoadSettings, PlanSettings
from depthcut.slicing import slice_checkpoint
from depthcut.text.sequences import Sequences
from tests.processes import together
from tests.tiny import build_tiny, save_tiny, tiny_tokenizer

LOAD = LoadSettings(device="cpu")
SETTINGS = HealSettings(steps=6, batch_size=4, rank=4, learning_rate=5e-3, warmup_steps=2)


def counting(count: int = 16) -> Sequences:
    """Each token is the one before plus one."""
    ids = tuple(torch.arange(start, start + 24) % 200 for start in range(count))
    facts = TextFacts(source="counting", digest="text", sequences=count, tokens=24 * count)
    return Sequences(facts, ids, (23,) * count)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "base"
    save_tiny(build_tiny("llama").to(torch.bfloat16), path)
    tiny_tokenizer(path)
    return path


def logits(folder: Path) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        found: Tensor = model(input_ids=torch.arange(3, 30)[None]).logits
    return found


def loss(folder: Path) -> float:
    scores, ids = logits(folder)[0, :-1], torch.arange(4, 30)
    return torch.nn.functional.cross_entropy(scores, ids).item()


def test_a_sliced_checkpoint_is_healed_and_loads_like_any(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    facts = load(folder, LOAD).facts
    plan = plan_by_hand(facts, PlanSettings(remove="2-3"))
    pruned, healed = tmp_path / "pruned", tmp_path / "healed"
    slice_checkpoint(folder, plan, pruned)
    write_record(plan, pruned / "plan.json", overwrite=True)
    loaded = load(pruned, LOAD)
    record = heal_checkpoint(loaded, counting(), SETTINGS, LOAD, healed)

    assert loss(healed) < loss(pruned)
    assert record.losses[-1][1] < record.losses[0][1]
    assert read_record(healed / "depthcut.json", HealRecord) == record
    assert read_record(healed / "plan.json", Plan) == plan
    assert record.model == loaded.facts
    assert record.result.digest != loaded.facts.digest
    assert record.origin.inputs == heal_inputs(loaded.facts.digest, "text", SETTINGS, LOAD)

    before, after = (open_checkpoint(each) for each in (pruned, healed))
    assert after.config == before.config
    assert [(t.name, t.dtype, t.shape) for t in after.tensors.values()] == [
        (t.name, t.dtype, t.shape) for t in before.tensors.values()
    ]
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (healed / name).read_bytes() == (pruned / name).read_bytes()
    assert AutoTokenizer.from_pretrained(healed).chat_template
    card = (healed / "README.md").read_text()
    assert "layers 2–3" in card
    assert "nothing was trained" not in card

    with caplog.at_level(logging.WARNING):
        model, report = AutoModelForCausalLM.from_pretrained(healed, output_loading_info=True)
    assert model.config.num_hidden_layers == 4
    assert not any(report.values())
    assert "missing" not in caplog.text.lower()


def test_merged_result_equals_the_adapter_on_top_to_bfloat16_rounding(
    folder: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    settings = replace(SETTINGS, keep_adapter=True)
    heal_checkpoint(load(folder, LOAD), counting(), settings, LOAD, tmp_path / "healed")
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    on_top = PeftModel.from_pretrained(base, str(tmp_path / "healed" / "adapter"))
    merged = load_file(tmp_path / "healed" / "model.safetensors")
    weights = {
        name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()
    }
    exact = on_top.merge_and_unload().state_dict()
    changed = [name for name, weight in merged.items() if not weight.float().equal(weights[name])]
    assert len(changed) == 6 * 7
    for name, weight in merged.items():
        torch.testing.assert_close(weight.float(), exact[name], rtol=2**-8, atol=1e-7)
        assert weight.equal(exact[name].bfloat16())


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_heads_stay_as_they_are(tmp_path: Path, tied: bool) -> None:
    path = tmp_path / "base"
    save_tiny(build_tiny("gpt2", tied=tied), path)
    loaded = load(path, LOAD)
    heal_checkpoint(loaded, counting(), SETTINGS, LOAD, tmp_path / "healed")
    before, after = (load_file(each / "model.safetensors") for each in (path, tmp_path / "healed"))
    assert ("lm_head.weight" in after) is not tied
    assert after["transformer.wte.weight"].equal(before["transformer.wte.weight"])
    assert loss(tmp_path / "healed") < loss(path)


def test_sharded_checkpoints_keep_their_shards(tmp_path: Path) -> None:
    path = tmp_path / "base"
    save_tiny(build_tiny("llama"), path, max_shard_size=200_000)
    heal_checkpoint(load(path, LOAD), counting(), SETTINGS, LOAD, tmp_path / "healed")
    names = {file.name for file in path.glob("model*")}
    assert len(names) > 2
    assert {file.name for file in (tmp_path / "healed").glob("model*")} == names
    assert loss(tmp_path / "healed") < loss(path)


def test_a_model_in_memory_is_healed_without_being_changed(tmp_path: Path) -> None:
    model = build_tiny("llama")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    loaded = from_memory(model, tiny_tokenizer(tmp_path / "tokenizer"))
    record = heal_checkpoint(loaded, counting(), SETTINGS, LOAD, tmp_path / "healed")
    assert record.result.parameters == record.model.parameters
    assert all(before[name].equal(weight) for name, weight in model.state_dict().items())
    assert loss(tmp_path / "healed") < 5
    assert AutoTokenizer.from_pretrained(tmp_path / "healed").chat_template


def test_same_seed_gives_the_same_files(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        heal_checkpoint(load(folder, LOAD), counting(), SETTINGS, LOAD, tmp_path / name)
    first, second = (tmp_path / name / "model.safetensors" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_training_in_another_dtype_keeps_the_checkpoints(folder: Path, tmp_path: Path) -> None:
    wide = replace(LOAD, dtype="float32")
    heal_checkpoint(load(folder, wide), counting(), SETTINGS, wide, tmp_path / "healed")
    assert {t.dtype for t in open_checkpoint(tmp_path / "healed").tensors.values()} == {"BF16"}


def test_four_bit_training_merges_into_the_original_weights(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    path = tmp_path / "base"
    save_tiny(build_tiny("llama", layers=2, hidden_size=64, head_dim=16).bfloat16(), path)
    settings, four = replace(SETTINGS, keep_adapter=True), replace(LOAD, load_in_4bit=True)
    heal_checkpoint(load(path, four), counting(), settings, four, tmp_path / "healed")
    before, after = (load_file(each / "model.safetensors") for each in (path, tmp_path / "healed"))
    name = "model.layers.1.mlp.up_proj.weight"
    adapter = load_file(tmp_path / "healed" / "adapter" / "adapter_model.safetensors")
    part = f"base_model.model.{name.removesuffix('.weight')}"
    a, b = (adapter[f"{part}.lora_{which}.weight"].float() for which in "AB")
    scale = settings.alpha / settings.rank
    assert after[name].equal((before[name].float() + scale * (b @ a)).bfloat16())
    assert {weight.dtype for weight in after.values()} == {torch.bfloat16}
    assert loss(tmp_path / "healed") < loss(path)


def test_a_quantised_model_in_memory_is_refused(folder: Path, tmp_path: Path) -> None:
    model = build_tiny("llama")
    model.is_quantized = True
    with pytest.raises(SettingsError, match="give its checkpoint's folder"):
        heal_checkpoint(from_memory(model, None), counting(), SETTINGS, LOAD, tmp_path / "healed")
    assert not (tmp_path / "healed").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "--steps 0: expected a number of at least 1"),
        ({"steps": -3}, "--steps -3"),
        ({"rank": 0}, "--rank 0"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"learning_rate": 0.0}, "--learning-rate 0.0: expected a number above 0"),
        ({"dropout": 1.0}, "--dropout 1.0"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**32}, "--seed 4294967296"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(
    tiny_llama: Path, tmp_path: Path, change: dict[str, int], message: str
) -> None:
    settings = replace(SETTINGS, **change)
    with pytest.raises(SettingsError, match=message):
        heal_checkpoint(load(tiny_llama, LOAD), counting(), settings, LOAD, tmp_path / "healed")
    assert list(tmp_path.iterdir()) == []


def test_no_text_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(TextError, match="give more text"):
        heal_checkpoint(load(tiny_llama, LOAD), counting(0), SETTINGS, LOAD, tmp_path / "healed")


def test_an_existing_folder_is_refused_and_a_failed_training_leaves_none(
    tiny_llama: Path, tmp_path: Path
) -> None:
    loaded: LoadedModel = load(tiny_llama, LOAD)
    with pytest.raises(OutputError, match="exists already"):
        heal_checkpoint(loaded, counting(), SETTINGS, LOAD, tmp_path)
    settings = replace(SETTINGS, learning_rate=1e30)
    with pytest.raises(SettingsError, match="lower --learning-rate"):
        heal_checkpoint(loaded, counting(), settings, LOAD, tmp_path / "healed")
    assert list(tmp_path.iterdir()) == []


def test_no_more_text_is_read_than_the_steps_use() -> None:
    settings = HealSettings(steps=10, batch_size=8, context=100, held_out_tokens=50)
    assert as_needed(settings).tokens == 10 * 8 * 100 + 50
    assert as_needed(replace(settings, tokens=50)).tokens == 50


def test_inputs_change_with_everything_that_the_weights_depend_on() -> None:
    found = {
        heal_inputs("m", "t", SETTINGS, LOAD),
        heal_inputs("n", "t", SETTINGS, LOAD),
        heal_inputs("m", "u", SETTINGS, LOAD),
        heal_inputs("m", "t", replace(SETTINGS, seed=1), LOAD),
        heal_inputs("m", "t", SETTINGS, replace(LOAD, load_in_4bit=True)),
    }
    assert len(found) == 5


def test_the_adapter_alone_says_which_model_it_belongs_to(folder: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, keep_adapter=True)
    heal_checkpoint(load(folder, LOAD), counting(), settings, LOAD, tmp_path / "healed")
    config = json.loads((tmp_path / "healed" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder)
    assert config["r"] == 4


@pytest.mark.parametrize("loss", ["next-token", "hidden"])
def test_processes_share_a_step_and_come_to_the_same(
    loss: str, folder: Path, tmp_path: Path
) -> None:
    teacher = None
    if loss == "hidden":
        teacher = save_tiny(build_tiny("llama", rms_norm_eps=0.1), tmp_path / "teacher")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{number} bottles of beer on the wall" for number in range(400)))
    settings = HealSettings(
        text=str(text),
        context=24,
        steps=4,
        batch_size=4,
        held_out_tokens=100,
        method="full",
        loss=loss,
        teacher=str(teacher) if teacher else None,
    )
    alone = api.heal(folder, tmp_path / "alone", settings, load=LOAD)
    arguments = f"heal {folder} --text {text} --context 24 --steps 4 --batch-size 4"
    arguments += f" --held-out-tokens 100 --method full --device cpu --out {tmp_path / 'shared'}"
    arguments += f" --loss {loss}" + (f" --teacher {teacher}" if teacher else "")
    for ended in together(arguments.split(), 2):
        assert ended.code == 0, ended.messages
    shared = read_record(tmp_path / "shared" / "depthcut.json", HealRecord)
    assert shared.devices == 2
    assert shared.trained_tokens == alone.trained_tokens
    for one, other in zip(alone.losses, shared.losses, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    assert [each.loss for each in alone.judgements] == pytest.approx(
        [each.loss for each in shared.judgements], rel=1e-3
    )


def test_options_that_come_to_nothing_are_refused() -> None:
    for change, message in (
        ({"teacher_kept": 5}, "give --teacher parent"),
        ({"keep_adapter": True, "method": "full"}, "no adapter to keep"),
        ({"patience": 2, "held_out_tokens": 0}, "give --held-out-tokens"),
    ):
        with pytest.raises(SettingsError, match=message):
            check(replace(HealSettings(), **change))
    with pytest.raises(SettingsError, match="no loss asks the teacher"):
        loss_weights(HealSettings(teacher="parent", loss="next-token"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "adamw_torsh"}, "did you mean adamw_torch"),
        ({"report_to": "tensorbord"}, "not supported"),
        ({"batch_size": 4, "micro_batch_size": 3}, "expected one of 1, 2, 4"),
        ({"patience": 1, "held_out_tokens": 10}, "give more text"),
    ],
)
def test_what_the_trainer_does_not_know_is_refused_before_the_training(
    tiny_llama: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    settings = replace(SETTINGS, **change)
    with pytest.raises((SettingsError, TextError), match=message):
        heal_checkpoint(load(tiny_llama, LOAD), counting(), settings, LOAD, tmp_path / "healed")
    assert list(tmp_path.iterdir()) == []


def test_more_tokens_than_positions_are_refused(tmp_path: Path) -> None:
    path = save_tiny(build_tiny("gpt2", max_position_embeddings=16), tmp_path / "base")
    with pytest.raises(SettingsError, match="give --context 16"):
        heal_checkpoint(load(path, LOAD), counting(), SETTINGS, LOAD, tmp_path / "healed")


def test_a_training_that_made_it_worse_says_so(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = replace(SETTINGS, learning_rate=3.0, warmup_steps=0, method="full")
    record = heal_checkpoint(load(folder, LOAD), counting(), settings, LOAD, tmp_path / "healed")
    assert min(each.loss for each in record.judgements[1:]) > record.judgements[0].loss
    assert "training did not help" in caplog.text


def test_a_model_that_was_cut_from_another_is_not_taught_by_it(
    folder: Path, tmp_path: Path
) -> None:
    plan = plan_by_hand(load(folder, LOAD).facts, PlanSettings(remove="2-3"))
    pruned = tmp_path / "pruned"
    slice_checkpoint(folder, plan, pruned)
    save_tiny(build_tiny("llama").to(torch.bfloat16).apply(_moved), folder)
    text = tmp_path / "text.txt"
    text.write_text("bottles of beer on the wall " * 400)
    settings = HealSettings(teacher="parent", text=str(text), steps=1, context=24)
    with pytest.raises(SettingsError, match="is not the model any more"):
        api.heal(pruned, tmp_path / "healed", settings, load=LOAD)


def test_a_misspelt_teacher_is_told_before_the_model_is_loaded(
    folder: Path, tmp_path: Path
) -> None:
    (text := tmp_path / "text.txt").write_text("bottles of beer on the wall")
    settings = HealSettings(teacher=str(tmp_path / "parnt"), text=str(text), steps=1)
    with pytest.raises(SourceError, match=r"^--teacher: .*parnt"):
        api.heal(folder, tmp_path / "healed", settings, load=LOAD)
    settings = HealSettings(teacher="parnt", text=str(text), steps=1)
    with pytest.raises(SourceError, match=r"did you mean parent\?"):
        api.heal(folder, tmp_path / "healed", settings, load=LOAD)


def _moved(module: torch.nn.Module) -> None:
    for weight in module.parameters(recurse=False):
        weight.data.add_(0.01)

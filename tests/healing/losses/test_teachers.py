from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file
from torch import nn

from depthcut.errors import OutputError, SettingsError
from depthcut.healing.heal import heal_checkpoint
from depthcut.healing.losses import kept_teacher as keeping
from depthcut.healing.losses.kept_teacher import KeptTeacher, kept_teacher
from depthcut.healing.losses.objective import Objective, counting
from depthcut.healing.losses.teachers import OnlineTeacher, Untouched, leaving
from depthcut.healing.rows import Rows, collate
from depthcut.model.loading import LoadedModel, from_memory, load
from depthcut.planning import plan_by_hand
from depthcut.records import HealRecord, TextFacts, write_record
from depthcut.settings import HealSettings, LoadSettings, PlanSettings
from depthcut.slicing import slice_checkpoint
from depthcut.text.sequences import Sequences
from tests.tiny import build_tiny, save_tiny, tiny_tokenizer

LOAD = LoadSettings(device="cpu")
SETTINGS = HealSettings(
    teacher="parent", steps=12, batch_size=4, rank=8, learning_rate=5e-3, warmup_steps=2,
    held_out_tokens=48,
)  # fmt: skip
ROWS = Rows(tuple(torch.arange(start, start + 12 + start) for start in range(6)))


def untouched(loaded: LoadedModel) -> Untouched:
    return Untouched(loaded.facts, lambda: loaded)


def kept(loaded: LoadedModel, rows: Rows, settings: HealSettings) -> KeptTeacher:
    return kept_teacher(untouched(loaded), rows, settings, load=LOAD, student=loaded)


def counted(count: int = 24) -> Sequences:
    ids = tuple(torch.arange(start, start + 24) % 200 for start in range(count))
    facts = TextFacts(source="counting", digest="text", sequences=count, tokens=24 * count)
    return Sequences(facts, ids, (23,) * count)


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    path = save_tiny(build_tiny("llama"), tmp_path / "parent")
    tiny_tokenizer(path)
    return path


@pytest.fixture
def pruned(parent: Path, tmp_path: Path) -> Path:
    plan = plan_by_hand(load(parent, LOAD).facts, PlanSettings(remove="2-3"))
    slice_checkpoint(parent, plan, tmp_path / "pruned")
    write_record(plan, tmp_path / "pruned" / "plan.json", overwrite=True)
    return tmp_path / "pruned"


def healed(pruned: Path, parent: Path, out: Path, settings: HealSettings = SETTINGS) -> HealRecord:
    return heal_checkpoint(
        load(pruned, LOAD), counted(), settings, LOAD, out, teacher=untouched(load(parent, LOAD))
    )


def test_a_model_beside_itself_has_nothing_to_learn() -> None:
    model = from_memory(build_tiny("llama"), None)
    teacher = OnlineTeacher(model, range(1, 7), logits=True)
    batch = collate([ROWS.row(number) for number in range(4)])
    objective = Objective({"kl": 1.0, "hidden": 1.0}, teacher=teacher, compared=list(model.layers))
    assert objective.of(model.model, batch).item() == pytest.approx(0, abs=1e-3)
    mixed, own = objective.judged(model.model, batch)
    assert own.item() > 5 * int(counting(batch["labels"]).sum()) / 2
    assert mixed.item() == pytest.approx(0, abs=1e-3)


def test_states_are_those_behind_the_layers_that_are_named() -> None:
    model = build_tiny("llama")
    layers: list[nn.Module] = [model.model.layers[1], model.model.layers[4]]
    ids = torch.arange(9)[None]
    with torch.no_grad(), leaving(layers) as states:
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
    assert states[0].equal(hidden[2])
    assert states[1].equal(hidden[5])


@pytest.mark.parametrize("loss", ["kl", "hidden", "kl:1,hidden:0.5,next-token:0.1"])
def test_a_cut_model_comes_nearer_to_its_parent(
    loss: str, parent: Path, pruned: Path, tmp_path: Path
) -> None:
    record = healed(pruned, parent, tmp_path / "healed", replace(SETTINGS, loss=loss))
    assert record.teacher == load(parent, LOAD).facts
    assert record.losses[-1][1] < 0.9 * record.losses[0][1]
    assert (tmp_path / "healed" / "README.md").read_text().count("| teacher |") == 1


def test_what_is_kept_of_a_teacher_is_what_it_predicts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DEPTHCUT_CACHE", str(tmp_path))
    model = from_memory(build_tiny("llama"), None)
    settings = replace(SETTINGS, teacher_kept=200)
    teacher = kept(model, ROWS, settings)
    batch = collate([ROWS.row(number) for number in (4, 1, 3)])
    rows = counting(batch["labels"])
    found, _ = teacher.predictions(batch, rows)
    logits, _ = OnlineTeacher(model, (), logits=True).predictions(batch, rows)
    assert isinstance(logits, torch.Tensor)
    log_probs = torch.log_softmax(logits.float(), dim=1)
    exact = log_probs.gather(1, found.ids)
    torch.testing.assert_close(found.log_weights[:, :100], exact[:, :100], rtol=0, atol=1 / 4000)
    entropy = -(log_probs.exp() * log_probs).sum(dim=1)
    torch.testing.assert_close(found.entropy, entropy, rtol=0, atol=1 / 4000)
    assert found.log_weights.exp().sum(dim=1) == pytest.approx(torch.ones(len(entropy)), abs=1e-3)
    assert len(found.ids) == int(rows.sum())
    size = next(tmp_path.rglob("predictions")).stat().st_size
    assert size == sum(len(ids) for ids in ROWS.trained) * (200 * 4 + 2)


def test_a_teacher_is_asked_once_for_each_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DEPTHCUT_CACHE", str(tmp_path))
    model, settings = from_memory(build_tiny("llama"), None), replace(SETTINGS, teacher_kept=5)
    kept(model, ROWS, settings)
    asked = keeping._some

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(keeping, "_some", never)
    kept(model, ROWS, settings)
    kept(model, ROWS, replace(settings, learning_rate=1e-5, steps=3))
    with pytest.raises(AssertionError):
        kept(model, Rows(ROWS.trained[:5]), settings)
    monkeypatch.setattr(keeping, "_some", asked)


def test_a_killed_reading_goes_on_behind_the_last_whole_sequence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DEPTHCUT_CACHE", str(tmp_path))
    model, settings = from_memory(build_tiny("llama"), None), replace(SETTINGS, teacher_kept=5)
    kept(model, ROWS, settings)
    path = next(tmp_path.rglob("predictions"))
    content = path.read_bytes()
    path.unlink()
    torn = (12 + 13) * (5 * 4 + 2) + 7  # two sequences, and a bit of the third
    path.with_name("partly").write_bytes(content[:torn])
    kept(model, ROWS, settings)
    assert path.read_bytes() == content
    assert [each.name for each in path.parent.iterdir()] == ["predictions"]


def test_training_from_what_is_kept_ends_where_training_beside_the_teacher_does(
    parent: Path, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPTHCUT_CACHE", str(tmp_path / "cache"))
    beside = healed(pruned, parent, tmp_path / "beside")
    settings = replace(SETTINGS, teacher_kept=264)
    from_file = healed(pruned, parent, tmp_path / "kept", settings)
    assert [loss for _, loss in from_file.losses] == pytest.approx(
        [loss for _, loss in beside.losses], rel=2e-3
    )
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("beside", "kept"))
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=0, atol=5e-3)


def test_a_teacher_that_cannot_be_one_is_refused(
    parent: Path, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPTHCUT_CACHE", str(tmp_path / "cache"))
    other = from_memory(build_tiny("llama", vocab_size=300), None, name="stranger")
    loaded: LoadedModel = load(pruned, LOAD)

    def refused(settings: HealSettings, teacher: LoadedModel, message: str) -> None:
        with pytest.raises(SettingsError, match=message):
            heal_checkpoint(
                loaded, counted(), settings, LOAD, tmp_path / "healed", teacher=untouched(teacher)
            )

    refused(SETTINGS, other, "stranger has another vocabulary")
    top = replace(SETTINGS, teacher_kept=5)
    refused(replace(top, loss="hidden"), load(parent, LOAD), "keeps predictions, not states")
    refused(replace(top, teacher_kept=10**6), load(parent, LOAD), "the vocabulary has 264")
    refused(replace(top, temperature=2.0), load(parent, LOAD), "at temperature 1")
    (pruned / "plan.json").unlink()
    refused(replace(SETTINGS, loss="hidden"), load(parent, LOAD), "or --loss kl")
    assert not (tmp_path / "healed").exists()


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEPTHCUT_CACHE", str(tmp_path / "file"))
    settings = replace(SETTINGS, teacher_kept=5)
    with pytest.raises(OutputError, match="cannot write to"):
        kept(from_memory(build_tiny("llama"), None), ROWS, settings)


def test_ids_are_as_narrow_as_the_vocabulary_allows() -> None:
    assert keeping.ids_dtype(65536).itemsize == 2
    assert keeping.ids_dtype(65537).itemsize == 4

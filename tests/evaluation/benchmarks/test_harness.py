"""lm-eval as a library: its numbers, its items, and what happens when something is missing."""

import logging
from functools import partial
from pathlib import Path

import msgspec
import pytest
import torch
from transformers import PreTrainedModel

from depthcut.errors import CheckpointError, MissingExtraError, SettingsError, SourceError
from depthcut.evaluation.benchmarks.answers import Answers, Unit
from depthcut.evaluation.benchmarks.asked import Asked
from depthcut.evaluation.candidates import Candidate
from depthcut.model.loading import LoadedModel, load
from depthcut.settings import EvaluateSettings, LoadSettings
from tests.evaluation.benchmarks.task_folder import TASKS, write_tasks
from tests.tiny import build_tiny, save_tiny, tiny_tokenizer

lm_eval = pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'depthcut[eval]'")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def settings(tasks: Path) -> EvaluateSettings:
    return EvaluateSettings(include=(str(tasks),), batch_size=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny(build_tiny("llama"), tmp_path_factory.mktemp("model"))
    tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(model: Path) -> LoadedModel:
    return load(model, LoadSettings())


def answer(
    name: str, loaded: LoadedModel, settings: EvaluateSettings, parts: Path, **asked: int
) -> Unit:
    from depthcut.evaluation.benchmarks.harness import Harness

    candidate = Candidate("model", loaded.facts, lambda: loaded, folder=loaded.folder)
    return Harness(settings).answer(Asked(name, **asked), candidate, parts=parts / "parts")


def the_only(unit: Unit) -> Answers:
    (found,) = unit.answers
    return found


@pytest.mark.parametrize("name", TASKS)
def test_numbers_and_items_are_those_of_lm_eval_itself(
    name: str, model: Path, loaded: LoadedModel, settings: EvaluateSettings, tmp_path: Path
) -> None:
    from depthcut.evaluation.benchmarks.harness import Harness, _quiet

    found = the_only(answer(name, loaded, settings, tmp_path))
    harness = Harness(settings)
    with _quiet():
        theirs = lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(model)},
            device="cpu",
            tasks=[harness.load(Asked(name))["tasks"][name]],
            task_manager=harness._manager(name),
            batch_size=4,
            bootstrap_iters=10,
        )
    values = theirs["results"][name]
    assert {each.name for each in found.metrics} == {
        key.partition(",")[0] for key in values if "," in key and "_stderr" not in key
    }
    for metric in found.metrics:
        assert metric.value == values[f"{metric.name},none"]
        if metric.name in ("acc", "acc_norm", "exact_match"):
            assert metric.stderr == pytest.approx(values[f"{metric.name}_stderr,none"], abs=1e-12)
        assert metric.stderr is not None
    samples = sorted(theirs["samples"][name], key=lambda each: each["doc_id"])
    assert [each.number for each in found.items] == [each["doc_id"] for each in samples]
    for item, sample in zip(found.items, samples, strict=True):
        for metric_name, score in item.scores.items():
            if metric_name not in item.weights:
                assert score == sample[metric_name]


def test_a_question_and_its_answers_are_kept_as_a_person_reads_them(
    loaded: LoadedModel, settings: EvaluateSettings, tmp_path: Path
) -> None:
    colours = the_only(answer("colours", loaded, settings, tmp_path))
    assert colours.items[1].question == "Question: Which colour has number 1?\nAnswer:"
    assert colours.items[1].right == "dark green"
    assert colours.items[1].answer in ("red", "dark green", "blue", "a yellow one")
    assert colours.task.chance == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert (colours.task.metric, colours.task.output) == ("acc_norm", "multiple_choice")
    assert (colours.task.version, colours.task.shots, colours.task.items) == ("1.5", 0, 12)
    right = [item.answer == item.right for item in colours.items]
    assert right == [item.scores["acc_norm"] == 1.0 for item in colours.items]
    assert right != [item.scores["acc"] == 1.0 for item in colours.items]
    who = the_only(answer("who", loaded, settings, tmp_path))
    assert who.items[1].right == "dark green, and it"
    right = [item.answer == item.right for item in who.items]
    assert right == [item.scores["acc"] == 1.0 for item in who.items]
    pages = the_only(answer("pages", loaded, settings, tmp_path))
    assert (pages.task.metric, pages.task.higher_is_better) == ("bits_per_byte", False)
    assert pages.task.chance is None


def test_a_group_comes_before_its_tasks_and_has_lm_evals_mean(
    loaded: LoadedModel, settings: EvaluateSettings, tmp_path: Path
) -> None:
    group, first, second = answer("pair", loaded, settings, tmp_path).answers
    assert [each.task.name for each in (group, first, second)] == ["pair", "first", "second"]
    assert [each.task.group for each in (group, first, second)] == ["", "pair", "pair"]
    assert (group.task.items, group.task.metric) == (24, "acc")
    shares = [each.scores["acc"] for part in (first, second) for each in part.items]
    assert group.metrics[0].value == pytest.approx(sum(shares) / 24)


def test_a_limit_draws_the_same_questions_for_every_model(
    loaded: LoadedModel, settings: EvaluateSettings, tmp_path: Path
) -> None:
    few = msgspec.structs.replace(settings, limit=5)
    numbers = [item.number for item in the_only(answer("colours", loaded, few, tmp_path)).items]
    again = [item.number for item in the_only(answer("colours", loaded, few, tmp_path)).items]
    other = msgspec.structs.replace(few, seed=1)
    drawn = [item.number for item in the_only(answer("colours", loaded, other, tmp_path)).items]
    assert len(numbers) == 5
    assert numbers == again != drawn
    whole = the_only(answer("colours", loaded, settings, tmp_path))
    limited = the_only(answer("colours", loaded, settings, tmp_path, limit=5))
    assert [item.number for item in limited.items] == numbers
    assert (limited.task.items, limited.task.items_in_all) == (5, 12)
    assert [whole.items[each].question for each in numbers] == [
        item.question for item in limited.items
    ]


def test_examples_are_shown_before_a_question_and_left_out_of_what_is_kept(
    loaded: LoadedModel, settings: EvaluateSettings, tmp_path: Path
) -> None:
    shown = the_only(answer("colours", loaded, settings, tmp_path, shots=2))
    assert shown.task.shots == 2
    assert shown.items[1].question == "Question: Which colour has number 1?\nAnswer:"


def test_a_killed_command_asks_only_what_was_not_answered(
    loaded: LoadedModel, settings: EvaluateSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from depthcut.evaluation.benchmarks import answerers

    whole = the_only(answer("endings", loaded, settings, tmp_path))
    asked, real = [], answerers.InTransformers._model_call

    def stopping(self: object, inps: object, *args: object, **options: object) -> object:
        asked.append(len(inps))  # type: ignore[arg-type]
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(self, inps, *args, **options)

    monkeypatch.setattr(answerers.InTransformers, "_model_call", stopping)
    with pytest.raises(KeyboardInterrupt):
        answer("endings", loaded, settings, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["parts_rank0.db"]
    asked.append(0)
    resumed = the_only(answer("endings", loaded, settings, tmp_path))
    assert asked[4:] == [4]
    assert resumed == whole
    assert not list(tmp_path.iterdir())


def test_an_unknown_task_is_refused_with_the_nearest_name(settings: EvaluateSettings) -> None:
    from depthcut.evaluation.benchmarks.harness import Harness

    with pytest.raises(SettingsError, match=r"knows no task 'colors' \(did you mean colours\?\)"):
        Harness(settings).load(Asked("colors"))


def test_missing_data_is_named_with_what_to_do(settings: EvaluateSettings, tmp_path: Path) -> None:
    from depthcut.evaluation.benchmarks.harness import Harness

    here = msgspec.structs.replace(settings, data=str(tmp_path))
    with pytest.raises(SourceError, match=r"arc_easy/test\.jsonl is missing; .*allenai/ai2_arc"):
        Harness(here).load(Asked("arc_easy"))
    with pytest.raises(SourceError, match=r"mmlu/.*\.jsonl is missing; .*cais/mmlu"):
        Harness(here).load(Asked("mmlu"))
    with pytest.raises(SourceError, match=r"allenai/ai2_arc on the hub, .* --data"):
        Harness(settings).load(Asked("arc_easy"))


def test_examples_that_would_be_questions_are_refused(settings: EvaluateSettings) -> None:
    from depthcut.evaluation.benchmarks.harness import Harness

    Harness(settings).load(Asked("colours", 3))
    with pytest.raises(SettingsError, match="its questions as examples: ask for who:0"):
        Harness(settings).load(Asked("who", 3))


def test_code_of_a_model_runs_in_the_sandbox_or_not_at_all(
    settings: EvaluateSettings, tasks: Path
) -> None:
    from depthcut.evaluation.benchmarks.harness import Harness

    written = (tasks / "sums.yaml").read_text().replace("task: sums", "task: risky")
    (tasks / "risky").mkdir()
    (tasks / "risky" / "risky.yaml").write_text(f"{written}unsafe_code: true\n")
    risky = msgspec.structs.replace(settings, include=(str(tasks / "risky"),))
    with pytest.raises(SettingsError, match=r"risky runs what .* take humaneval or mbpp"):
        Harness(risky).load(Asked("risky"))


def test_a_chat_template_is_used_or_asked_for(
    loaded: LoadedModel, settings: EvaluateSettings, tmp_path: Path
) -> None:
    chat = msgspec.structs.replace(settings, chat_template=True)
    shown = the_only(answer("colours", loaded, chat, tmp_path)).items[0].question
    assert shown.startswith("<|im_start|>user\nQuestion: Which colour has number 0?")
    bare = tiny_tokenizer(tmp_path)
    bare.chat_template = None
    without = LoadedModel(loaded.model, bare, loaded.facts, loaded.folder)
    with pytest.raises(SettingsError, match="has no chat template: leave --chat-template out"):
        answer("colours", without, chat, tmp_path)


def test_a_missing_engine_says_how_to_install_it(
    loaded: LoadedModel, settings: EvaluateSettings, tmp_path: Path
) -> None:
    vllm = msgspec.structs.replace(settings, backend="vllm")
    with pytest.raises((SettingsError, MissingExtraError), match="pip install vllm"):
        answer("colours", loaded, vllm, tmp_path)


def test_the_tokenizer_is_left_as_it_was(
    settings: EvaluateSettings, tmp_path: Path, model: Path
) -> None:
    fresh = load(model, LoadSettings())
    assert isinstance(fresh.model, PreTrainedModel)
    assert fresh.tokenizer is not None
    fresh.tokenizer.pad_token = None
    answer("colours", fresh, settings, tmp_path)
    assert fresh.tokenizer.pad_token is None


def test_likelihoods_that_are_no_numbers_are_told_not_counted(
    settings: EvaluateSettings, tmp_path: Path
) -> None:
    # The first of four NaNs would be taken as the likeliest: a broken model would guess.
    model = build_tiny("llama", layers=2)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    tiny_tokenizer(save_tiny(model, tmp_path / "broken"))
    broken = load(tmp_path / "broken", LoadSettings())
    for name in ("colours", "pages"):
        with pytest.raises(CheckpointError, match=r"broken gives is not a number: its weights"):
            answer(name, broken, settings, tmp_path)


def test_a_model_without_a_tokenizer_is_refused(
    loaded: LoadedModel, settings: EvaluateSettings, tmp_path: Path
) -> None:
    mute = LoadedModel(loaded.model, None, loaded.facts, loaded.folder)
    with pytest.raises(SettingsError, match="has no tokenizer, and questions are text"):
        answer("colours", mute, settings, tmp_path)


def with_file(tmp_path: Path, written: str) -> EvaluateSettings:
    (tmp_path / "mine.yaml").write_text(written)
    return EvaluateSettings(include=(str(tmp_path),))


def test_a_metric_that_nobody_knows_is_refused(
    tasks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from depthcut.evaluation.benchmarks.harness import Harness

    written = (tasks / "colours.yaml").read_text().replace("task: colours", "task: mine")
    mine = with_file(tmp_path, written.replace("metric: acc_norm", "metric: acc_nrm"))
    with pytest.raises(SettingsError, match=r"'acc_nrm', .* \(did you mean acc_norm\?\)"):
        Harness(mine).load(Asked("mine"))
    assert "not found" not in capfd.readouterr().err


def test_a_task_file_that_is_no_yaml_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from depthcut.evaluation.benchmarks import harness
    from depthcut.evaluation.benchmarks.harness import Harness

    only_own = partial(harness._indexed, everything=False)  # all of lm-eval's take seconds
    monkeypatch.setattr(harness, "_indexed", lambda folders, everything: only_own(folders))
    mine = with_file(tmp_path, "task: mine\n  path: [never closed\n")
    with pytest.raises(SourceError, match=r"mine\.yaml is no task file that lm-eval can read"):
        Harness(mine).load(Asked("mine"))


def test_a_file_without_questions_is_told(tasks: Path, tmp_path: Path) -> None:
    from depthcut.evaluation.benchmarks.harness import Harness

    (tmp_path / "none.jsonl").touch()
    written = (tasks / "colours.yaml").read_text().replace("task: colours", "task: mine")
    mine = with_file(
        tmp_path, written.replace(str(tasks / "items.jsonl"), str(tmp_path / "none.jsonl"))
    )
    with pytest.raises(SourceError, match=r"none\.jsonl holds no questions"):
        Harness(mine).load(Asked("mine"))


def test_a_set_is_suggested_too(settings: EvaluateSettings) -> None:
    from depthcut.evaluation.benchmarks.harness import Harness

    with pytest.raises(SettingsError, match=r"did you mean standard\?"):
        Harness(settings).load(Asked("standart"))


def test_long_questions_bring_no_notice_of_transformers(
    tasks: Path, loaded: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = (tasks / "colours.yaml").read_text().replace("task: colours", "task: mine")
    mine = with_file(tmp_path, written.replace("{{question}}", "{{question * 50}}"))
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.WARNING, "transformers"):
            answer("mine", loaded, msgspec.structs.replace(mine, limit=2), tmp_path)
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records


def test_damaged_answers_of_a_killed_command_are_asked_again(
    loaded: LoadedModel, settings: EvaluateSettings, tmp_path: Path
) -> None:
    whole = the_only(answer("endings", loaded, settings, tmp_path))
    (tmp_path / "parts_rank0.db").write_bytes(b"no database" * 100)
    assert the_only(answer("endings", loaded, settings, tmp_path)) == whole
    assert not list(tmp_path.iterdir())

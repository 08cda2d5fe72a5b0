import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM

import depthcut
from depthcut import api
from depthcut.api import recovering
from depthcut.checkpoint.folder import open_checkpoint
from depthcut.errors import DepthcutError, OutputError, PlanError, SettingsError, SourceError
from depthcut.pipeline import run
from depthcut.recipes import read_recipe, write_recipe
from depthcut.records import (
    Bench,
    Evaluation,
    HealRecord,
    ModelFacts,
    Plan,
    Search,
    Survey,
    read_record,
)
from depthcut.settings import (
    BenchSettings,
    EvaluateSettings,
    HealSettings,
    LoadSettings,
    PlanSettings,
    Recipe,
    RepairSettings,
    SearchSettings,
    SurveySettings,
)
from tests.evaluation.benchmarks.task_folder import write_tasks

CHAIN = ("pruned", "repaired", "healed")
TEXT = " ".join(f"The number {n} is followed by the number {n + 1}." for n in range(400))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that was measured by another test, or another day's code, is found."""
    monkeypatch.setenv("DEPTHCUT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def recipe(tiny_llama: Path, tmp_path: Path) -> Recipe:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    source, context = str(text), 64
    return Recipe(
        model=str(tiny_llama),
        survey=SurveySettings(text=source, part="train", context=context, tokens=2048),
        plan=PlanSettings(drop=2, protect="0"),
        repair=RepairSettings(text=source, part="train", context=context, tokens=2048),
        heal=HealSettings(
            text=source,
            part="train",
            context=context,
            teacher="parent",
            steps=2,
            batch_size=4,
            rank=2,
            held_out_tokens=128,
        ),
        evaluate=EvaluateSettings(
            text=source, part="held-out", context=context, new_tokens=4, tokens=1024
        ),
        bench=None,
    )


def results(folder: Path) -> dict[str, object]:
    """Everything that must be the same each time: no times, no speeds."""
    survey = read_record(folder / "survey.json", Survey)
    evaluation = read_record(folder / "evaluation.json", Evaluation)
    return {
        "scores": survey.scores,
        "removed": read_record(folder / "plan.json", Plan).removed,
        "losses": [each.loss for each in evaluation.models],
        "texts": [each.generations for each in evaluation.models],
        "comparisons": evaluation.comparisons,
        **{name: (folder / name / "model.safetensors").read_bytes() for name in CHAIN},
    }


def test_a_run_leaves_a_smaller_model_and_every_record(recipe: Recipe, tmp_path: Path) -> None:
    lines: list[str] = []
    done = run(recipe, tmp_path / "run", announce=lines.append)
    assert done.model == tmp_path / "run" / "healed"
    stages = ["survey", "plan", "slice", "repair", "heal", "evaluate", "report"]
    assert [*dict.fromkeys(line.split(":")[0] for line in lines)] == stages
    assert [each.name for each in done.evaluation.models] == ["original", *CHAIN]
    assert [each.model.layers for each in done.evaluation.models] == [6, 4, 4, 4]
    healed = read_record(done.model / "depthcut.json", HealRecord)
    assert healed.model == api.facts(tmp_path / "run" / "repaired")
    assert healed.teacher == done.plan.model
    page = done.report.read_text()
    assert "How near the states came" in page
    assert "taught by" in page
    model, info = AutoModelForCausalLM.from_pretrained(done.model, output_loading_info=True)
    assert model.config.num_hidden_layers == 4
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_a_run_measures_speed_and_is_not_made_to_twice(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("depthcut.benching.bench.measure_footprint", lambda *_: None)
    bench = BenchSettings(prompt_tokens=8, new_tokens=2, rounds=2)
    timed = msgspec.structs.replace(recipe, heal=None, bench=bench)
    lines: list[str] = []
    done = run(timed, tmp_path / "run", announce=lines.append)
    assert lines[-2:] == ["bench: original, repaired in transformers", "report"]
    assert done.bench is not None
    assert done.bench == read_record(tmp_path / "run" / "bench.json", Bench)
    assert [each.name for each in done.bench.models] == ["original", "repaired"]
    assert done.bench.ratios[0].ideal_decode > 1
    assert "the speed of the original" in done.report.read_text()
    again = run(timed, tmp_path / "run", announce=lines.append)
    assert lines[-2:] == ["bench.json is there already", "report"]
    assert again.bench == done.bench


def test_a_run_puts_benchmark_questions(recipe: Recipe, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'depthcut[eval]'")
    folder = write_tasks(tmp_path / "tasks", items=8)
    asked = EvaluateSettings(
        tokens=0, new_tokens=0, tasks=("colours", "endings"), include=(str(folder),)
    )
    asking = msgspec.structs.replace(recipe, repair=None, heal=None, evaluate=asked)
    lines: list[str] = []
    done = run(asking, tmp_path / "run", announce=lines.append)
    assert "evaluate: original, pruned on colours, endings" in lines
    assert done.evaluation.tasks is not None
    assert (tmp_path / "run" / done.evaluation.tasks.samples).is_file()
    assert "colours" in done.report.read_text()
    run(asking, tmp_path / "run", announce=lines.append)
    assert "evaluation.json is there already" in lines


def test_a_task_that_cannot_be_put_stops_a_run_before_its_first_stage(
    recipe: Recipe, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'depthcut[eval]'")
    asked = msgspec.structs.replace(recipe.evaluate, tasks=("arc_easy",), data=str(tmp_path))
    unable = msgspec.structs.replace(recipe, evaluate=asked)
    lines: list[str] = []
    with pytest.raises(SourceError, match=r"arc_easy/test\.jsonl is missing"):
        run(unable, tmp_path / "run", announce=lines.append)
    assert lines == []


@pytest.mark.parametrize(
    ("bench", "message"),
    [
        (BenchSettings(engine="llama.cpp"), "a run makes checkpoint folders"),
        (BenchSettings(rounds=0), "--rounds 0"),
    ],
)
def test_speed_that_a_run_could_not_measure_is_refused_at_once(
    recipe: Recipe, tmp_path: Path, bench: BenchSettings, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        run(msgspec.structs.replace(recipe, bench=bench), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_second_run_does_nothing_again(recipe: Recipe, tmp_path: Path) -> None:
    run(recipe, tmp_path / "run")
    before = results(tmp_path / "run")
    lines: list[str] = []
    run(recipe, tmp_path / "run", announce=lines.append)
    assert all(line.endswith("there already") for line in lines[:-1])
    assert results(tmp_path / "run") == before


def test_changed_settings_are_refused_and_then_replace_only_what_depends_on_them(
    recipe: Recipe, tmp_path: Path
) -> None:
    run(recipe, tmp_path / "run")
    other = msgspec.structs.replace(recipe, plan=PlanSettings(drop=3, protect="0"))
    with pytest.raises(OutputError, match="other inputs or settings"):
        run(other, tmp_path / "run")
    assert len(read_record(tmp_path / "run" / "plan.json", Plan).removed_layers) == 2
    (tmp_path / "run" / "healed.training").mkdir()  # as a killed healing leaves it
    (tmp_path / "run" / "healed.training" / "inputs.json").write_text('{"inputs":"of another"}')
    lines: list[str] = []
    run(other, tmp_path / "run", overwrite=True, announce=lines.append)
    assert lines[0] == "survey.json is there already"
    assert not any("already" in line for line in lines[1:])
    for name in CHAIN:
        assert open_checkpoint(tmp_path / "run" / name).config["num_hidden_layers"] == 3
    bare = msgspec.structs.replace(other, repair=None, heal=None)
    with pytest.raises(OutputError, match=r"repaired was made from other inputs"):
        run(bare, tmp_path / "run")
    assert run(bare, tmp_path / "run", overwrite=True).model.name == "pruned"
    assert not any((tmp_path / "run" / name).exists() for name in CHAIN[1:])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"repair": RepairSettings(method="refitt")}, "did you mean refit"),
        ({"plan": PlanSettings(remove="0,3")}, "no layer stays before the first one"),
        ({"plan": PlanSettings(remove="3.mlp")}, "parts of layers that stay"),
        (
            {"search": SearchSettings(granularity="sublayer", drop=2)},
            "a search for parts of layers and a repair",
        ),
        ({"load": LoadSettings(load_in_4bit=True)}, "quantised weights cannot be repaired"),
        ({"repair": RepairSettings(text="-")}, "save standard input"),
        ({"heal": HealSettings(text="no-such.txt")}, "no-such"),
        ({"heal": HealSettings(steps=0)}, "--steps 0"),
        ({"heal": HealSettings(loss="kl")}, "teacher"),
        ({"heal": HealSettings(teacher="./no-such-model")}, "no-such-model"),
    ],
)
def test_what_cannot_be_repaired_or_healed_is_refused_before_the_survey(
    recipe: Recipe, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(DepthcutError, match=words):
        run(msgspec.structs.replace(recipe, **changes), tmp_path / "run")
    assert not (tmp_path / "run" / "survey.json").exists()
    assert not (tmp_path / "run" / "pruned").exists()


def test_the_teacher_is_the_revision_that_was_cut(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.slice(recipe.model, api.plan(recipe.model, PlanSettings(remove="2")), tmp_path / "pruned")
    asked: list[tuple[str, str | None]] = []
    facts = api.facts

    def found(source: str | Path, *, load: LoadSettings) -> ModelFacts:
        asked.append((str(source), load.revision))
        return facts(source, load=load)

    monkeypatch.setattr(recovering, "facts", found)
    monkeypatch.setattr(
        recovering, "load_source", lambda source, _, load, **_named: found(source, load=load)
    )
    with pytest.raises(AttributeError):  # facts are no model
        api.heal(
            tmp_path / "pruned", tmp_path / "healed", recipe.heal,
            load=LoadSettings(revision="abc"),
        )  # fmt: skip
    assert (recipe.model, "abc") in asked


def test_layers_named_by_hand_need_no_survey(recipe: Recipe, tmp_path: Path) -> None:
    by_hand = msgspec.structs.replace(
        recipe, plan=PlanSettings(remove="1,3"), repair=None, heal=None
    )
    done = run(by_hand, tmp_path / "run")
    assert done.plan.removed == ((1, 2), (3, 4))
    assert not (tmp_path / "run" / "survey.json").exists()
    assert done.model == tmp_path / "run" / "pruned"


def test_a_folder_of_something_else_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("dear")
    with pytest.raises(OutputError, match=r"thesis\.txt"):
        run(recipe, tmp_path / "run")
    assert [each.name for each in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_two_runs_cannot_share_a_folder(recipe: Recipe, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "run").mkdir()
    handle = os.open(tmp_path / "run", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(OutputError, match="another depthcut run"):
        run(recipe, tmp_path / "run")
    os.close(handle)


def test_standard_input_is_refused_because_it_is_read_twice(recipe: Recipe, tmp_path: Path) -> None:
    piped = msgspec.structs.replace(recipe, survey=SurveySettings(text="-"))
    with pytest.raises(SettingsError, match="save standard input"):
        run(piped, tmp_path / "run")


def test_standard_input_among_others_is_refused_too(recipe: Recipe, tmp_path: Path) -> None:
    survey = msgspec.structs.replace(recipe.survey, text=("builtin", "-:2"))
    with pytest.raises(SettingsError, match="save standard input to a file"):
        run(msgspec.structs.replace(recipe, survey=survey), tmp_path / "run")


def test_a_run_on_several_texts_says_so_everywhere(recipe: Recipe, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(TEXT.upper())
    texts = (f"{recipe.survey.text}:3", str(other))
    recipe = msgspec.structs.replace(
        recipe,
        survey=msgspec.structs.replace(recipe.survey, text=texts),
        repair=None,
        heal=None,
        evaluate=msgspec.structs.replace(recipe.evaluate, text=texts),
    )
    lines: list[str] = []
    done = run(recipe, tmp_path / "run", announce=lines.append)
    assert f"survey: {recipe.model} on {' + '.join(texts)}" in lines
    survey = read_record(done.folder / "survey.json", Survey)
    assert [part.tokens for part in survey.text.parts] == [1536, 512]
    assert survey.text.source == f"{texts[0].removesuffix(':3')} (75%) and {other} (25%)"
    assert read_recipe(done.folder / "recipe.yaml") == recipe
    page = done.report.read_text()
    assert f"{other} (25%)" in page
    lines.clear()
    run(recipe, tmp_path / "run", announce=lines.append)
    assert "survey.json is there already" in lines


def test_more_layers_than_there_are_leave_no_checkpoint(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="at most 5"):
        run(msgspec.structs.replace(recipe, plan=PlanSettings(drop=6)), tmp_path / "run")
    assert not (tmp_path / "run" / "pruned").exists()


def finished_folders_are_right(folder: Path, expected: Mapping[str, object]) -> None:
    for name in CHAIN:
        if (folder / name).exists():
            assert (folder / name / "model.safetensors").read_bytes() == expected[name]
            assert (folder / name / "depthcut.json").exists()


def check_killed_at_random(recipe: Recipe, tmp_path: Path, *, times: int) -> None:
    run(recipe, tmp_path / "expected")
    expected = results(tmp_path / "expected")
    path = tmp_path / "recipe.yaml"
    path.write_bytes(write_recipe(recipe))
    chance = random.Random(0)
    duration, folder, killed, last = 0.0, tmp_path / "run-0", 0, 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "depthcut", "run", str(path), "--out"]
    while killed < times:
        began = time.monotonic()
        with subprocess.Popen(
            [*command, str(folder)], env=environment, stderr=subprocess.PIPE
        ) as process:
            try:
                process.wait(timeout=chance.uniform(0.0, duration) if duration else None)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                killed += 1
        finished_folders_are_right(folder, expected)
        if process.returncode == 0:
            duration = duration or time.monotonic() - began
            assert results(folder) == expected
            last += 1
            folder = tmp_path / f"run-{last}"
    subprocess.run([*command, str(folder)], check=True, env=environment, capture_output=True)
    assert results(folder) == expected
    assert not [each for each in folder.iterdir() if ".partial-" in each.name]


def test_a_killed_run_goes_on_to_the_same_result(recipe: Recipe, tmp_path: Path) -> None:
    check_killed_at_random(recipe, tmp_path, times=1)


@pytest.mark.slow
def test_twenty_kills_change_nothing(recipe: Recipe, tmp_path: Path) -> None:
    check_killed_at_random(recipe, tmp_path, times=20)


def test_the_python_functions_take_models_and_strings_in_memory(
    tiny_llama: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    weights = {name: each.clone() for name, each in model.state_dict().items()}
    texts = [TEXT[:2000], TEXT[2000:4000]]
    survey = depthcut.survey(
        model, depthcut.SurveySettings(context=64), texts=texts, tokenizer=tokenizer
    )
    assert survey.model.layers == 6
    plan = depthcut.plan(survey, depthcut.PlanSettings(drop=2), out=tmp_path / "plan.json")
    assert read_record(tmp_path / "plan.json", Plan) == plan
    evaluation = depthcut.evaluate(
        {"here": model, "again": model},
        depthcut.EvaluateSettings(context=64, new_tokens=0),
        texts=texts,
        tokenizer=tokenizer,
    )
    assert evaluation.comparisons[0].loss_difference.value == 0.0
    assert all(torch.equal(weights[name], each) for name, each in model.state_dict().items())


def test_a_plan_by_a_criterion_that_is_not_surveyed_is_refused_before_the_survey(
    recipe: Recipe, tmp_path: Path
) -> None:
    asked = msgspec.structs.replace(recipe, plan=PlanSettings(drop=2, criterion="cka"))
    with pytest.raises(SettingsError, match="add cka to the survey's criteria"):
        run(asked, tmp_path / "run")
    assert not (tmp_path / "run" / "survey.json").exists()


@pytest.fixture
def searching(recipe: Recipe) -> Recipe:
    search = SearchSettings(
        method="greedy", text=recipe.survey.text, part="train", context=32, tokens=1024, drop="1:3"
    )
    return msgspec.structs.replace(
        recipe, plan=PlanSettings(drop=2), search=search, repair=None, heal=None
    )


def test_a_search_in_the_recipe_chooses_the_layers(searching: Recipe, tmp_path: Path) -> None:
    lines: list[str] = []
    done = run(searching, tmp_path / "run", announce=lines.append)
    assert [line.split(":")[0] for line in lines] == [
        "survey", "search", "plan", "slice", "evaluate", "report",
    ]  # fmt: skip
    search = read_record(tmp_path / "run" / "search.json", Search)
    assert done.plan.removed == search.find(2).removed
    assert done.plan.search == searching.search
    page = done.report.read_text()
    assert "What the search found" in page
    assert "method: greedy" in page  # in the recipe that makes the run again
    lines.clear()
    run(searching, tmp_path / "run", announce=lines.append)
    assert "search.json is there already" in lines


def test_a_killed_search_of_a_run_goes_on(searching: Recipe, tmp_path: Path) -> None:
    from depthcut.searching.journal import Journal

    add, written = Journal.add, []

    def dying(self: Journal, entry: object) -> None:
        add(self, entry)  # type: ignore[arg-type]
        written.append(entry)
        if len(written) == 5:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "add", dying)
        with pytest.raises(KeyboardInterrupt):
            run(searching, tmp_path / "run")
    journal = tmp_path / "run" / "search.json.journal"
    assert len(journal.read_text().splitlines()) == 1 + 5
    assert searching.search
    other = msgspec.structs.replace(
        searching, search=msgspec.structs.replace(searching.search, objective="loss")
    )
    with pytest.raises(OutputError, match="was begun with other settings"):
        run(other, tmp_path / "run")
    run(searching, tmp_path / "run")
    assert not journal.exists()
    run(other, tmp_path / "run", overwrite=True)


def test_another_search_replaces_what_a_killed_one_left(searching: Recipe, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_bytes(write_recipe(searching))
    (tmp_path / "run" / "search.json.journal").write_text('{"inputs":"of another"}\n')
    with pytest.raises(OutputError, match="was begun with other settings"):
        run(searching, tmp_path / "run")
    run(searching, tmp_path / "run", overwrite=True)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (PlanSettings(drop=4), "removes 4 of 6 layers, and the search's drop is 1:3: add 4 to it"),
        (PlanSettings(keep=1), "removes 5 of 6 layers"),
        (PlanSettings(drop="1:2"), "one number of layers"),
        (PlanSettings(remove="3"), "remove and a search"),
        (PlanSettings(drop=2, protect="0,1"), "protects layer 0, which the search may take"),
    ],
)
def test_a_plan_that_the_search_will_not_find_is_refused_at_once(
    searching: Recipe, plan: PlanSettings, words: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=words):
        run(msgspec.structs.replace(searching, plan=plan), tmp_path / "run")
    assert not (tmp_path / "run" / "survey.json").exists()


def test_a_run_by_parts_of_layers_writes_zeros_and_says_so(
    searching: Recipe, tmp_path: Path
) -> None:
    assert searching.search
    search = msgspec.structs.replace(
        searching.search, granularity="sublayer", drop="1:3", protect="0-5.mlp"
    )
    by_parts = msgspec.structs.replace(searching, search=search, plan=PlanSettings(drop=3))
    done = run(by_parts, tmp_path / "run")
    assert not done.plan.removed
    assert [each.part for each in done.plan.zeroed] == ["attention"] * 3
    assert depthcut.verify(done.model).loads
    page = done.report.read_text()
    assert f"{done.plan.words.replace('attention', 'Attention')} add nothing any more" in page
    assert "mergekit" not in page
    with pytest.raises(SettingsError, match="removes 4 of 12 parts of layers, and the search"):
        run(msgspec.structs.replace(by_parts, plan=PlanSettings(drop=4)), tmp_path / "other")
    plan = PlanSettings(drop=3, protect="3.attention")
    with pytest.raises(SettingsError, match="protects layer 3, which the search may take"):
        run(msgspec.structs.replace(by_parts, plan=plan), tmp_path / "other")

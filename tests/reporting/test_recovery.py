"""What came back of what the cut lost: shares with errors, and none where nothing is certain."""

import dataclasses
import math
import random
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from depthcut.records import Estimate
from depthcut.reporting.recovery import (
    came_back,
    costs,
    measures,
    on_text,
    repaired_rows,
    solved_rows,
)
from depthcut.reporting.results import Results, read_results
from depthcut.reporting.story import story
from depthcut.reporting.terminal import repair_lines
from tests.reporting.ladder_for_tests import make_tasks
from tests.reporting.run_for_tests import make_run, on_two_texts


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return read_results(make_run().write(tmp_path))


def test_a_share_is_of_what_the_cut_lost() -> None:
    cut = Estimate(value=2.0, stderr=0.0)
    for now, share in ((2.0, 0.0), (0.5, 0.75), (0.0, 1.0), (-0.2, 1.1), (3.0, -0.5)):
        assert came_back(cut, Estimate(value=now, stderr=0.0)).value == pytest.approx(share)


def test_its_error_is_that_of_a_ratio_of_independent_differences() -> None:
    cut, now = Estimate(value=1.0, stderr=0.02), Estimate(value=0.4, stderr=0.03)
    draw = random.Random(0)
    shares = [
        1 - draw.gauss(now.value, now.stderr) / draw.gauss(cut.value, cut.stderr)
        for _ in range(20_000)
    ]
    mean = math.fsum(shares) / len(shares)
    spread = math.sqrt(math.fsum((each - mean) ** 2 for each in shares) / len(shares))
    assert came_back(cut, now).stderr == pytest.approx(spread, rel=0.03)


def test_a_better_score_counts_as_one_that_came_back() -> None:
    lost = Estimate(value=-0.10, stderr=0.01)
    assert came_back(lost, Estimate(value=-0.02, stderr=0.01)).value == pytest.approx(0.8)


def test_the_text_has_a_value_for_each_model_and_a_share_after_the_cut(results: Results) -> None:
    measure = on_text(results)
    assert measure
    assert measure.values == ("28.79 ± 0.89", "77.5 ± 2.4", "49.4 ± 1.5", "40.9 ± 1.3")
    assert {name: round(each.value, 3) for name, each in measure.back.items()} == {
        "repaired": 0.455,
        "healed": 0.646,
    }


def test_a_cut_that_lost_nothing_certain_has_no_shares(tmp_path: Path) -> None:
    run = make_run(6)
    assert run.evaluation
    cut, *others = run.evaluation.comparisons
    unsure = msgspec.structs.replace(cut, loss_difference=Estimate(value=0.01, stderr=0.012))
    evaluation = msgspec.structs.replace(run.evaluation, comparisons=(unsure, *others))
    measure = on_text(read_results(run._replace(evaluation=evaluation).write(tmp_path)))
    assert measure
    assert measure.back == {}


def test_several_texts_have_a_share_each_beside_that_of_all(tmp_path: Path) -> None:
    run = make_run(6)
    assert run.evaluation
    evaluation = on_two_texts(run.evaluation)
    results = read_results(run._replace(evaluation=evaluation).write(tmp_path))
    found = {each.name: each for each in measures(results)}
    whole = "support.txt (50%) and c4.jsonl (50%)"
    assert list(found) == [whole, "support.txt", "c4.jsonl"]
    assert found["support.txt"].values == ("28.8 ± 1.3", "47.2 ± 2.1", "37.7 ± 1.7", "34.3 ± 1.5")
    cut, _, healed = (each.texts[0].loss_difference for each in evaluation.models[1:])
    assert cut
    assert healed
    assert found["support.txt"].back["healed"] == came_back(cut, healed)
    told = " ".join(story(results))
    assert "The healed model is on support.txt alone significantly worse: 1.19× the perpl" in told
    assert "; on c4.jsonl alone significantly worse: 1.69× the perplexity of the original" in told


def test_a_text_on_which_the_cut_lost_nothing_certain_has_no_share(tmp_path: Path) -> None:
    run = make_run(6)
    assert run.evaluation
    evaluation = on_two_texts(run.evaluation)
    first, cut, *others = evaluation.models
    unsure = msgspec.structs.replace(
        cut.texts[0], loss_difference=Estimate(value=0.01, stderr=0.012)
    )
    cut = msgspec.structs.replace(cut, texts=(unsure, cut.texts[1]))
    evaluation = msgspec.structs.replace(evaluation, models=(first, cut, *others))
    found = measures(read_results(run._replace(evaluation=evaluation).write(tmp_path)))
    assert [sorted(each.back) for each in found[1:]] == [[], ["healed", "repaired"]]


def test_a_cut_that_nothing_followed_has_no_measures(tmp_path: Path) -> None:
    assert measures(read_results(make_run(6, repair=False, heal=False).write(tmp_path))) == []


def test_benchmarks_and_their_average_come_after_the_text(tmp_path: Path) -> None:
    run = make_run(6)
    assert run.evaluation
    names = [each.name for each in run.evaluation.models]
    tasks = make_tasks(list(zip(names, (0, 10, 6, 2), strict=True)))
    evaluation = msgspec.structs.replace(run.evaluation, tasks=tasks)
    found = measures(read_results(run._replace(evaluation=evaluation).write(tmp_path)))
    chief = [task.name for task in tasks.chief]
    average = found[-1]
    assert [each.name for each in found] == ["builtin", *chief, average.name]
    assert all(len(each.values) == len(names) for each in found)
    cut, healed = (tasks.average(name) for name in ("pruned", "healed"))
    assert cut
    assert healed
    assert cut.difference
    assert healed.difference
    assert average.name == f"average of {len(cut.tasks)}"
    assert average.back["healed"] == came_back(cut.difference, healed.difference)
    unlike = [each.name for each in found if each.back]
    assert "lambada" in unlike  # where lower is better
    assert len(unlike) < len(found)  # some task cannot tell the cut from the original


def test_what_it_took_is_told_for_each_stage(results: Results) -> None:
    repair, heal = costs(results)
    assert (repair.stage, repair.tokens, repair.changed) == ("repair", 65_536, "1 tensor")
    assert (heal.stage, heal.tokens, heal.time) == ("healing", 819_200, "1 min 1 s")
    assert heal.how == "lora, 200 steps, taught by smollm2"
    assert repaired_rows(results) == [("layers 13–19", "41.2 %", "17.3 %")]
    assert solved_rows(results) == [
        ("layers 13–19", "12", "41.2 %", "17.3 %", "0.01", "1.7e+04", "mlp.down_proj")
    ]


def test_a_merge_is_told_with_its_strength(results: Results) -> None:
    assert results.repair is not None
    (block,) = results.repair.blocks
    (step,) = block.steps
    step = replace(step, ridge=None, condition=None, strength=0.125)
    merged = replace(
        results.repair,
        settings=replace(results.repair.settings, method="merge"),
        fitted_tokens=0,
        blocks=(replace(block, steps=(step,)),),
    )
    results = dataclasses.replace(results, repair=merged)
    assert solved_rows(results) == [
        ("layers 13–19", "12", "41.2 %", "17.3 %", "0.125", "–", "mlp.down_proj")
    ]
    assert costs(results)[0].how == "merge"
    assert "made up for by merge (" in repair_lines(merged)
    assert "from 41.2% to 17.3% (strength 0.125)" in repair_lines(merged)


def test_the_story_says_what_came_back(results: Results) -> None:
    told = " ".join(story(results))
    assert "Repaired, 45.5 ± 1.4 % of what the cut lost is back." in told
    assert "Healed, it is significantly worse: 1.42× the perplexity of the original" in told
    assert "64.6 ± 1.3 % of what the cut lost is back." in told

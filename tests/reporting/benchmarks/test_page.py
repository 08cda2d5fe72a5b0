"""The forest of differences and the fall to chance."""

import csv
import io
from typing import Any

import msgspec
import pytest

from depthcut.records import Evaluation
from depthcut.reporting.benchmarks.page import benchmark_figures
from depthcut.reporting.figures.depths import above_chance
from depthcut.reporting.figures.forest import forest
from tests.reporting.ladder_for_tests import make_ladder
from tests.reporting.run_for_tests import make_facts

LADDER = make_ladder()


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_every_task_and_model_has_its_interval() -> None:
    assert LADDER.tasks
    figure = forest(LADDER, LADDER.tasks)
    assert len(figure.rows) == 11 * 5
    found = rows(figure.csv())[4]  # hellaswag, the model without ten layers
    difference = LADDER.tasks.difference("smollm2-minus-10", "hellaswag")
    assert difference
    reach = 1.96 * 100 * difference.difference.stderr
    assert float(found["high"]) - float(found["difference"]) == pytest.approx(reach)
    assert found["verdict"] == "significantly worse"


def test_metrics_that_are_no_shares_get_an_axis_of_their_own() -> None:
    assert LADDER.tasks
    spec: dict[str, Any] = forest(LADDER, LADDER.tasks).spec
    titles = [
        panel["layer"][0]["encoding"]["x"]["title"] for panel in spec["vconcat"]
    ]  # fmt: skip
    assert titles == ["points of 100", "perplexity, lower is better"]


def test_hollow_dots_are_not_significant() -> None:
    assert LADDER.tasks
    spec: dict[str, Any] = forest(LADDER, LADDER.tasks).spec
    _, _, hollow, filled = spec["vconcat"][0]["layer"]
    assert not any(row["clear"] for row in hollow["data"]["values"])
    assert all(row["clear"] for row in filled["data"]["values"])
    assert "not significant" in hollow["data"]["values"][0]["tip"]


def test_the_fall_begins_whole_and_leaves_out_what_means_nothing() -> None:
    assert LADDER.tasks
    figure = above_chance(LADDER, LADDER.tasks)
    found = rows(figure.csv())
    averages = [each for each in found if each["task"] == "average"]
    assert [int(each["layers_removed"]) for each in averages] == [0, 1, 3, 5, 7, 10]
    assert float(averages[0]["share"]) == 1
    assert {"gsm8k", "lambada", "mmlu"}.isdisjoint({each["task"] for each in found})
    assert "Without mmlu, where the untouched model is not clearly above chance" in figure.caption


def test_other_peoples_models_are_no_depth_of_the_first() -> None:
    other = make_facts(12, source="other", digest="f" * 32)
    other = msgspec.structs.replace(other, hidden_size=64)
    *models, last = LADDER.models
    evaluation = msgspec.structs.replace(
        LADDER, models=(*models, msgspec.structs.replace(last, model=other))
    )
    differences, fall = benchmark_figures(evaluation)
    assert last.name in differences.csv()
    assert last.name not in fall.csv()


@pytest.mark.parametrize(
    ("evaluation", "names"),
    [
        (make_ladder((0,)), []),
        (make_ladder((0, 3)), ["benchmark-differences"]),
        (LADDER, ["benchmark-differences", "benchmark-above-chance"]),
    ],
)
def test_a_figure_needs_something_to_compare(evaluation: Evaluation, names: list[str]) -> None:
    figures = benchmark_figures(evaluation)
    assert [figure.name for figure in figures] == names
    for figure in figures:
        assert figure.svg().startswith("<svg")

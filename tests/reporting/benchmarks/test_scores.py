"""What a benchmark's numbers are shown as, and what they allow to say."""

import msgspec
import pytest

from depthcut.records import Estimate, Task, TaskResults
from depthcut.reporting.benchmarks import scores as benchmarks
from depthcut.reporting.benchmarks.flips import EXAMPLES, flipped_tasks
from depthcut.reporting.benchmarks.story import NAMED, chances, findings
from depthcut.reporting.benchmarks.terminal import benchmark_tables
from depthcut.reporting.terminal import evaluation_tables, show
from tests.reporting.ladder_for_tests import SUBTASKS, make_ladder, make_tasks

MODELS = ("base", "near", "far")


@pytest.fixture(scope="module")
def results() -> TaskResults:
    return make_tasks([("base", 0), ("near", 1), ("far", 7)])


def task(results: TaskResults, name: str) -> Task:
    return next(each for each in results.tasks if each.name == name)


@pytest.mark.parametrize(
    ("value", "p_value", "higher", "kind"),
    [
        (-0.1, 0.001, True, "worse"),
        (0.1, 0.001, True, "better"),
        (0.1, 0.001, False, "worse"),
        (-0.1, 0.001, False, "better"),
        (-0.1, 0.05, True, "same"),
        (-0.1, None, True, "open"),
        (0.0, 0.0, True, "same"),
    ],
)
def test_a_difference_is_judged_by_its_p_value_and_its_side(
    value: float, p_value: float | None, higher: bool, kind: str
) -> None:
    difference = Estimate(value=value, stderr=0.05)
    assert benchmarks.judge(difference, p_value, higher_is_better=higher) == kind


def test_shares_are_shown_in_percent_and_perplexity_as_it_is(results: TaskResults) -> None:
    (lines,) = (benchmarks.task_lines(results, MODELS, results.chief),)
    by_name = {line.name: line for line in lines}
    shown = by_name["hellaswag"]
    assert shown.cells[0].score == "55.8 ± 3.2"
    assert (shown.cells[0].difference, shown.cells[0].mark) == ("", "")
    assert (shown.cells[1].difference, shown.cells[1].said) == ("0.0 ± 1.2", "not significant")
    assert (shown.cells[2].mark, shown.cells[2].p_value) == ("*", "p < 0.001")
    assert (shown.chance, shown.items) == ("25.0", "240 of 2,400")
    perplexity = by_name["lambada"]
    assert perplexity.cells[0].score == "38.0 ± 1.9"
    assert perplexity.cells[2].kind == "worse"
    assert perplexity.note == "perplexity, 0-shot, lower is better"
    assert perplexity.chance == "–"


def test_a_model_that_was_not_asked_gets_a_dash(results: TaskResults) -> None:
    lines = benchmarks.task_lines(results, ("base", "other"), results.chief)
    assert {line.cells[1].score for line in lines} == {"–"}


def test_tasks_of_a_group_stand_below_it_and_not_beside(results: TaskResults) -> None:
    assert "mmlu_anatomy" not in [each.name for each in results.chief]
    ((group, inside),) = benchmarks.groups(results)
    assert group.name == "mmlu"
    assert [each.name for each in inside] == [f"mmlu_{name}" for name in SUBTASKS]


def test_the_average_comes_with_what_is_left_above_chance(results: TaskResults) -> None:
    average, left = benchmarks.average_lines(results, MODELS)
    assert average.name == "average of 10"
    assert [cell.said for cell in average.cells] == ["", "not significant", "significantly worse"]
    assert left.cells[0].score == "–"
    assert float(left.cells[2].score.split(" ± ")[0]) < 50
    without = msgspec.structs.replace(results, averages=())
    assert benchmarks.average_lines(without, MODELS) == []


def test_each_sentence_says_what_is_significant_after_how_many_questions(
    results: TaskResults,
) -> None:
    near, far = findings(results, MODELS)
    assert near.on_average.startswith("46.8 ± 0.9 % on average of 10, not significantly different")
    assert "Not significant on" in near.by_task
    assert "hellaswag (0.0 ± 1.2 points)" in near.by_task
    assert "after 240 to 300 questions" in near.by_task
    assert "points below base, significantly. Of what base scores above chance" in far.on_average
    assert "Significantly worse on" in far.by_task
    assert "each after 240 questions" in far.by_task
    assert far.by_task.count(" points)") <= 2 * NAMED


def test_an_unknown_error_is_said_to_be_unknown(results: TaskResults) -> None:
    blind = msgspec.structs.replace(
        results,
        differences=tuple(
            msgspec.structs.replace(each, p_value=None) for each in results.differences
        ),
    )
    assert "No error is known on hellaswag, arc_easy" in findings(blind, MODELS)[0].by_task
    assert "ignificant" not in findings(blind, MODELS)[0].by_task
    assert benchmarks.by_chance(blind) == (0, 0)


def test_many_tests_come_with_how_many_pass_by_chance(results: TaskResults) -> None:
    assert chances(results) == (
        "Of 22 differences that were tested at 5 %, about 1 would pass even if all models were "
        "alike."
    )
    few = msgspec.structs.replace(results, differences=results.differences[:9])
    assert chances(few) == ""


def test_flips_are_counted_and_some_are_shown(results: TaskResults) -> None:
    flipped = {each.name: each for each in flipped_tasks(results, MODELS)}
    assert {"squad", "lambada"}.isdisjoint(flipped)  # no right and wrong there
    far = flipped["arc_easy"].models[1]
    assert far.lost > far.gained > 0
    assert len(far.examples) == EXAMPLES
    assert [each.gained for each in far.examples] == [False, False, True]
    inside = flipped["mmlu"].models[1].examples
    assert inside[0].place.startswith("mmlu_anatomy, question ")


def test_a_long_question_keeps_its_end() -> None:
    results = make_tasks([("a", 0), ("b", 7)], question="Well. " * 300 + "And who was it?")
    shown = flipped_tasks(results, ("a", "b"))[0].models[0].examples[0].question
    assert len(shown) <= 240
    assert shown.startswith("Well. Well.")
    assert "And who was it?" in shown


def test_the_terminal_says_not_significant(capsys: pytest.CaptureFixture[str]) -> None:
    results = make_tasks([(name, place) for place, name in enumerate(("a", "b", "c", "d", "[e]"))])
    show(benchmark_tables(results, ["a", "b", "c", "d", "[e]"]))
    out = " ".join(capsys.readouterr().out.split())
    assert "*: significant at 5 %; n.s.: not significant." in out
    assert "55.8 ± 3.2" in out
    assert "n.s. │" in out
    assert "[e]" in out
    assert out.count("hellaswag") == 2  # four others: two tables


def test_an_evaluation_of_tasks_alone_shows_no_table_of_a_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show(evaluation_tables(make_ladder((0, 3), text=False)))
    out = capsys.readouterr().out
    assert "hellaswag" in out
    assert "bits" not in out

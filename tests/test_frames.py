"""Records show themselves in a notebook, and give data frames where pandas is."""

import sys

import pytest

from depthcut.errors import MissingExtraError
from depthcut.frames import data_frame, html_table
from depthcut.planning import plan_from_survey
from depthcut.settings import PlanSettings
from tests.records_for_tests import make_survey
from tests.reporting.run_for_tests import make_evaluation, make_facts, on_two_texts


def test_all_text_in_a_table_is_escaped() -> None:
    table = html_table("<b>&", ("<i>",), [("<script>alert(1)</script>",)])
    assert "<script" not in table
    assert "<b>" not in table
    assert "<i>" not in table


def test_numbers_in_a_table_are_short_and_none_is_a_dash() -> None:
    table = html_table("", ("a", "b", "c", "d"), [(0.123456, 1234567, None, 134515008.0)])
    assert "<td>0.1235</td><td>1,234,567</td><td>–</td><td>134,515,008</td>" in table


def test_a_survey_has_a_row_for_each_criterion_and_block() -> None:
    survey = make_survey(layers=4)
    frame = survey.to_frame()
    assert len(frame) == 4 * 5 // 2 + 4
    block = frame[(frame.criterion == "angular") & (frame.start == 1) & (frame.stop == 3)]
    assert block.score.item() == survey.scores[0].mean[1][1]
    assert "layers" in survey._repr_html_()


def test_a_plan_shows_its_choice_and_the_runners_up() -> None:
    plan = plan_from_survey(make_survey(), PlanSettings(drop=2))
    assert next(iter(plan.to_frame().layers)) == plan.words
    assert len(plan.to_frame()) == 1 + len(plan.alternatives)
    assert plan.words in plan._repr_html_()


def test_an_evaluation_has_a_row_for_each_model() -> None:
    models = [("original", make_facts(4), 3.0), ("<pruned>", make_facts(3), 3.5)]
    evaluation = make_evaluation(models)
    frame = evaluation.to_frame().set_index("model")
    assert list(frame.index) == ["original", "<pruned>"]
    assert set(frame.text) == {"builtin"}
    assert frame.loc["<pruned>", "loss difference"] == 0.5
    assert frame.loc["original", "perplexity"] == evaluation.models[0].perplexity.value
    assert frame["loss difference"].isna().tolist() == [True, False]
    assert "&lt;pruned&gt;" in evaluation._repr_html_()


def test_an_evaluation_on_several_texts_has_a_row_for_each_of_them_too() -> None:
    models = [("original", make_facts(4), 3.0), ("pruned", make_facts(3), 3.5)]
    evaluation = on_two_texts(make_evaluation(models))
    frame = evaluation.to_frame()
    assert list(frame.text) == ["all"] * 2 + ["support.txt"] * 2 + ["c4.jsonl"] * 2
    lost = frame[frame.model == "pruned"].set_index("text")["loss difference"]
    assert lost.to_dict() == {"all": 0.5, "support.txt": 0.25, "c4.jsonl": 0.75}
    assert evaluation._repr_html_().count("c4.jsonl") == 2 + 1


def test_without_pandas_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'depthcut\[all\]'"):
        data_frame(("a",), [])

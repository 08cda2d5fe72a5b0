"""What other tools read is the same cut in their counting."""

import csv
import io
import random

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from depthcut.errors import SettingsError
from depthcut.planning import plan_by_hand
from depthcut.records import Plan
from depthcut.reporting.exports import mergekit_yaml, survey_csv
from depthcut.settings import PlanSettings
from tests.reporting.run_for_tests import (
    angle,
    make_facts,
    make_run,
    make_scores,
    make_states,
    make_survey,
)


def plan_without(remove: str, layers: int = 30) -> Plan:
    return plan_by_hand(make_facts(layers), PlanSettings(remove=remove))


def layers_of(text: str) -> list[int]:
    """The layers that mergekit keeps: each layer_range as Python's own range."""
    ranges = [
        source["layer_range"] for s in yaml.safe_load(text)["slices"] for source in s["sources"]
    ]
    return [layer for start, stop in ranges for layer in range(start, stop)]


@pytest.mark.parametrize("remove", ["12-18", "0", "29", "0-1,29", "3,5,7-9", "1-29", "0-28"])
def test_mergekit_keeps_exactly_the_layers_that_the_plan_keeps(remove: str) -> None:
    plan = plan_without(remove)
    assert layers_of(mergekit_yaml(plan)) == list(plan.kept_layers)


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 11), min_size=1, max_size=11))
def test_any_cut_comes_back_from_the_yaml(removed: set[int]) -> None:
    plan = plan_without(",".join(map(str, removed)), layers=12)
    assert layers_of(mergekit_yaml(plan)) == list(plan.kept_layers)


def test_the_yaml_reads_as_mergekit_documents_it() -> None:
    assert mergekit_yaml(plan_without("12-18")) == (
        "# 30 layers without layers 12–18 (7 layers).\n"
        "# layer_range is half open and counted from 0: [0, 2] keeps layers 0 and 1.\n"
        "slices:\n"
        "- sources:\n"
        "  - model: smollm2\n"
        "    layer_range: [0, 12]\n"
        "- sources:\n"
        "  - model: smollm2\n"
        "    layer_range: [19, 30]\n"
        "merge_method: passthrough\n"
    )


def test_a_strange_model_name_stays_one_string() -> None:
    name = "./a: b #c\n- [1]"
    text = mergekit_yaml(plan_without("1"), model=name)
    assert yaml.safe_load(text)["slices"][0]["sources"][0]["model"] == name


@pytest.mark.parametrize("size", [1, 3, 7])
def test_the_csv_has_pruneme_s_numbers_for_every_block_that_pruneme_has(size: int) -> None:
    # PruneMe's loop, from its description: all hidden states, the first dropped, each compared
    # with the one `size` further on, rows numbered from 1.
    layers = 9
    states = make_states(layers, random.Random(1))
    scores = make_scores([states], "angular", "last", NoNoise())
    hidden_states = states[1:]
    theirs = {
        (index + 1, index + 1 + size): angle(hidden_states[index], hidden_states[index + size])
        for index in range(len(hidden_states) - size)
    }

    rows = list(csv.DictReader(io.StringIO(survey_csv(scores, size))))
    ours = {
        (int(row["block_start"]), int(row["block_end"])): float(row["average_distance"])
        for row in rows
    }

    assert {block: ours[block] for block in theirs} == pytest.approx(theirs, rel=1e-12)
    assert set(ours) - set(theirs) == {(0, size)}  # the state that PruneMe drops


def test_a_csv_row_is_a_block_of_the_records() -> None:
    scores = make_survey(layers=6).find("angular", "last")
    rows = list(csv.DictReader(io.StringIO(survey_csv(scores))))
    assert len(rows) == 6 * 7 // 2
    for row in rows:
        start, stop = int(row["block_start"]), int(row["block_end"])
        assert float(row["average_distance"]) == scores.mean[start][stop - start - 1]
    sizes = [int(row["block_end"]) - int(row["block_start"]) for row in rows]
    assert sizes == sorted(sizes)


def test_the_best_row_gives_the_plan_that_mergekit_cuts() -> None:
    run = make_run(layers=12)
    assert run.survey
    assert run.plan
    scores = run.survey.find("angular", "last")
    rows = list(csv.DictReader(io.StringIO(survey_csv(scores, size=3))))
    best = min(rows, key=lambda row: float(row["average_distance"]))
    assert ((int(best["block_start"]), int(best["block_end"])),) == run.plan.removed


@pytest.mark.parametrize("size", [0, 7, -1])
def test_a_size_without_blocks_is_refused(size: int) -> None:
    with pytest.raises(SettingsError, match="blocks of 1 to 6 layers"):
        survey_csv(make_survey(layers=6).find("angular", "last"), size)


def test_single_layer_scores_have_no_bigger_blocks() -> None:
    scores = make_survey(layers=6).find("block-influence", "all")
    assert survey_csv(scores).count("\n") == 7
    with pytest.raises(SettingsError, match="single layers only"):
        survey_csv(scores, 2)


class NoNoise(random.Random):
    def gauss(self, mu: float = 0.0, sigma: float = 1.0) -> float:
        return mu

import pytest

from depthcut.errors import PlanError, SettingsError
from depthcut.healing.weights.targets import cuts, targets
from depthcut.planning import plan_by_hand
from depthcut.records import Plan
from depthcut.settings import HealSettings, PlanSettings
from tests.records_for_tests import make_facts


def planned(remove: str, layers: int = 12) -> Plan:
    return plan_by_hand(make_facts(layers), PlanSettings(remove=remove))


PLAN = planned("4-6,10")
"""Cuts are before the fifth and before the last of the eight layers that stay."""


def layers(text: str | None, method: str = "partial") -> list[int]:
    settings = HealSettings(layers=text, method=method)  # type: ignore[arg-type]
    return sorted(targets(settings, 8, PLAN).layers)


def test_cuts_are_where_layers_are_missing() -> None:
    assert cuts(PLAN) == (4, 7)
    assert cuts(planned("0-1")) == (0,)
    assert cuts(planned("9-11")) == (9,)


def test_words_name_layers_of_the_cut_model() -> None:
    assert layers("all") == list(range(8))
    assert layers("near-cut:1") == [3, 4, 6, 7]
    assert layers("near-cut") == [2, 3, 4, 5, 6, 7]
    assert layers("last:2") == [6, 7]
    assert layers("last:20") == list(range(8))
    assert layers("0-1, last:1") == [0, 1, 7]


def test_each_method_has_its_own_default() -> None:
    assert targets(HealSettings(), 8, None) == (frozenset(range(8)), False)
    assert targets(HealSettings(method="full"), 8, None) == (frozenset(range(8)), True)
    assert targets(HealSettings(method="partial"), 8, None) == (frozenset({5, 6, 7}), True)
    assert targets(HealSettings(method="partial", layers="head"), 8, None) == (frozenset(), True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("near-cat:2", "did you mean near-cut"),
        ("last:0", "expected a number of layers"),
        ("last:x", "expected a number of layers"),
        (" ", "names no layer"),
    ],
)
def test_words_that_name_nothing_are_refused(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        layers(text)


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(PlanError, match="there is no layer 8"):
        layers("8")
    with pytest.raises(SettingsError, match=r"no plan.json beside the weights"):
        targets(HealSettings(layers="near-cut"), 8, None)
    with pytest.raises(SettingsError, match=r"no plan.json beside the weights"):
        targets(HealSettings(layers="near-cut"), 9, PLAN)  # it is another model's


def test_behind_the_last_layer_there_is_a_cut_too() -> None:
    near = targets(HealSettings(layers="near-cut:2"), 9, planned("9-11"))
    assert sorted(near.layers) == [7, 8]


def test_what_a_method_cannot_train_is_refused() -> None:
    with pytest.raises(SettingsError, match="--method partial"):
        layers("all", method="full")
    with pytest.raises(SettingsError, match="tied to the embeddings"):
        layers("head", method="lora")

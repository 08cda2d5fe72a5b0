"""A plan takes what a search found."""

import msgspec
import pytest

from depthcut.errors import PlanError, SettingsError
from depthcut.planning import plan_from_search
from depthcut.settings import PlanSettings
from tests.reporting.sweeps_for_tests import make_search


def test_a_plan_takes_the_best_of_so_many_layers_with_its_runners_up() -> None:
    search = make_search()
    plan = plan_from_search(search, PlanSettings(drop=3))
    assert plan.removed == search.find(3).removed == ((26, 29),)
    assert plan.score == search.find(3).kl_divergence.value
    assert plan.alternatives == search.find(3).runners_up
    assert plan.search == search.settings


def test_a_size_in_parameters_takes_the_first_that_is_small_enough() -> None:
    plan = plan_from_search(make_search(), PlanSettings(params="125M"))
    assert len(plan.removed_layers) == 3


def test_a_layer_that_the_search_took_cannot_be_protected_afterwards() -> None:
    with pytest.raises(PlanError, match="the search took layer 27, or a part of it; search with"):
        plan_from_search(make_search(), PlanSettings(drop=3, protect="0,27-29"))
    assert plan_from_search(make_search(), PlanSettings(drop=3, protect="0,29"))


def test_what_the_search_did_not_come_to_is_refused() -> None:
    with pytest.raises(PlanError, match=r"did not come to 9: it has 1, .* --drop 9"):
        plan_from_search(make_search(), PlanSettings(drop=9))
    cut_short = msgspec.structs.replace(make_search(), complete=False)
    with pytest.raises(PlanError, match=r"before it came to 9: it has 1, .* more --minutes"):
        plan_from_search(cut_short, PlanSettings(drop=9))
    with pytest.raises(SettingsError, match="remove and a search"):
        plan_from_search(make_search(), PlanSettings(remove="3"))

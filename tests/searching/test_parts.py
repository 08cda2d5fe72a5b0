"""Searches whose steps are the attention or the MLP of a layer."""

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from depthcut.errors import ArchitectureError, PlanError, SettingsError
from depthcut.model.loading import from_memory, load
from depthcut.model.skipping import skipping
from depthcut.planning import plan_from_search
from depthcut.records import Search, Sublayer, units_of
from depthcut.searching.methods import METHODS
from depthcut.searching.search import search_model
from depthcut.searching.trials import Removed
from depthcut.settings import LoadSettings, PlanSettings
from depthcut.slicing import slice_checkpoint
from tests import every_type
from tests.searching.searches_for_tests import (
    BATCH,
    search,
    settings,
    some_text,
    tiny,
)
from tests.slices import load_exactly
from tests.tiny import save_tiny

ABLE = [name for name, method in METHODS.items() if method.parts]


def by_parts(method: str = "greedy", **changes: object) -> Search:
    return search(method, granularity="sublayer", **changes)


def units(record: Search) -> list[Removed]:
    return [units_of(point.removed, point.zeroed) for point in record.frontier]


@cache
def zeroed(removed: Removed) -> PreTrainedModel:
    """The model with the last projections of some parts zero."""
    model = copy.deepcopy(tiny())
    for unit in removed:
        layer = model.model.layers[unit // 2]
        (layer.mlp.down_proj if unit % 2 else layer.self_attn.o_proj).weight.data.zero_()
    return model


def log_probabilities(model: PreTrainedModel) -> list[Tensor]:
    """Of each sequence's next tokens, by a whole forward pass."""
    with torch.no_grad():
        logits = [model(input_ids=ids[None]).logits[0, :-1] for ids in some_text().sequences]
    return [functional.log_softmax(each.double(), dim=-1) for each in logits]


@cache
def cost(removed: Removed) -> float:
    """KL(whole ‖ zeroed), mean over the sequences."""
    pairs = zip(log_probabilities(tiny()), log_probabilities(zeroed(removed)), strict=True)
    return float(torch.stack([(p.exp() * (p - q)).sum(1).mean() for p, q in pairs]).mean())


def test_greedy_takes_the_part_that_costs_least_each_time() -> None:
    found = by_parts(drop="1:4")
    removed: Removed = ()
    for chosen, point in zip(units(found), found.frontier, strict=True):
        others = [tuple(sorted((*removed, unit))) for unit in range(12) if unit not in removed]
        best = min(others, key=cost)
        assert chosen == best
        assert point.kl_divergence.value == pytest.approx(cost(best), rel=2e-4)
        removed = best


@pytest.mark.parametrize("method", ABLE)
def test_every_method_chooses_parts(method: str) -> None:
    found = by_parts(method, drop="1:4", generations=2)
    counts = [len(each) for each in units(found)]
    assert [found.count(point) for point in found.frontier] == counts
    assert set(counts) >= {4}
    assert counts == sorted(set(counts))
    for chosen, point in zip(units(found), found.frontier, strict=True):
        assert point.kl_divergence.value == pytest.approx(cost(chosen), rel=2e-4)


def test_both_parts_of_a_layer_are_the_layer() -> None:
    found = by_parts("last", drop="3")
    (point,) = found.frontier
    assert point.removed == ((4, 5),)
    assert point.zeroed == (Sublayer(layer=5, part="attention"),)
    assert point.words == "layer 4 (1 layer); attention of layer 5"
    assert found.find(3) == point


def test_all_but_one_part_may_go() -> None:
    found = by_parts("random", drop="11")
    (point,) = found.frontier
    assert sum(stop - start for start, stop in point.removed) == 5
    assert len(point.zeroed) == 1


def test_parts_are_protected_by_name() -> None:
    found = by_parts(drop="1:5", protect="0-5.mlp,3")
    assert all(unit % 2 == 0 and unit != 6 for each in units(found) for unit in each)
    with pytest.raises(PlanError, match=r"only 5 parts of layers may go beside the protected"):
        by_parts(drop="6", protect="0-5.mlp,3")


def test_a_method_of_whole_layers_is_refused() -> None:
    with pytest.raises(SettingsError, match="ising knows whole layers only: choose one of greedy"):
        by_parts("ising")


def test_a_model_whose_layers_are_no_two_parts_is_refused() -> None:
    loaded = from_memory(every_type.build("mamba"), None)
    with pytest.raises(ArchitectureError, match="have no two parts"):
        search_model(loaded, some_text(), settings(granularity="sublayer"), LoadSettings())


def test_what_is_found_is_what_is_written(tmp_path: Path) -> None:
    parent = save_tiny(tiny(), tmp_path / "parent")
    loaded = load(parent, LoadSettings(device="cpu"))
    wanted = settings(granularity="sublayer", drop="1:5")
    found = search_model(loaded, some_text(), wanted, LoadSettings())
    plan = plan_from_search(found, PlanSettings(drop=5))
    point = found.find(5)
    assert (plan.removed, plan.zeroed) == (point.removed, point.zeroed)
    assert plan.zeroed
    assert plan.alternatives == point.runners_up
    assert plan.alternatives[0].words != plan.words
    slice_checkpoint(parent, plan, tmp_path / "cut", zero=True)
    made = log_probabilities(load_exactly(tmp_path / "cut"))
    losses = [
        -q.gather(1, ids[1:, None]).mean()
        for q, ids in zip(made, some_text().sequences, strict=True)
    ]
    assert float(torch.stack(losses).mean()) == pytest.approx(point.loss.value, rel=1e-6)


def test_a_share_is_of_all_parts_and_a_size_means_nothing() -> None:
    found = by_parts("last", drop="25%")
    assert [found.count(point) for point in found.frontier] == [3]
    assert plan_from_search(found, PlanSettings(drop="25%")).zeroed
    assert plan_from_search(found, PlanSettings(keep=9)).zeroed
    with pytest.raises(SettingsError, match="zeros take as much room"):
        plan_from_search(found, PlanSettings(params="100k"))
    with pytest.raises(PlanError, match="took layer 5, or a part of it"):
        plan_from_search(found, PlanSettings(drop=3, protect="5.attention"))
    assert plan_from_search(found, PlanSettings(drop=3, protect="5.mlp"))


def test_a_layer_with_one_part_runs_from_the_states_kept_before_it() -> None:
    with skipping(from_memory(tiny(), None), some_text(), batch_size=BATCH, parts=True) as skipper:
        whole = skipper.whole
        list(skipper.measure_each([whole], 0))
        before = skipper.work.layers
        skipper.measure(skipper.without_parts((8,)), 0)
        assert skipper.work.layers - before == 2 * BATCH  # layer 4 by its MLP, and layer 5
        before = skipper.work.layers
        stacks = [skipper.without_parts(each) for each in ((0, 8), (0, 9), (0, 8, 9), (0,))]
        list(skipper.measure_each(stacks, 0))
        # Layers 0 to 3 once, then layers 4 and 5 three times, and layer 5 alone.
        assert skipper.work.layers - before == (4 + 3 * 2 + 1) * BATCH

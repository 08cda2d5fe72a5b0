"""Survey and budget, or a hand's choice, to a plan: which layers go. No torch."""

from depthcut.planning.plan import (
    budget,
    layer_count,
    paired_difference,
    plan_by_hand,
    plan_by_mergekit,
    plan_from_search,
    plan_from_survey,
    plan_inputs,
)

__all__ = [
    "budget",
    "layer_count",
    "paired_difference",
    "plan_by_hand",
    "plan_by_mergekit",
    "plan_from_search",
    "plan_from_survey",
    "plan_inputs",
]

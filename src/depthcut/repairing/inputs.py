"""What a repair depends on, and which plans it is for, known before any model is loaded."""

import msgspec

from depthcut.errors import ArchitectureError, PlanError
from depthcut.records import Plan, inputs_digest, layers_in_words
from depthcut.settings import LoadSettings, RepairSettings


def repair_inputs(
    plan: Plan, model_digest: str, text_digest: str, settings: RepairSettings, load: LoadSettings
) -> str:
    """Digest of everything that the repaired weights depend on: not of how they are read."""
    settings = msgspec.structs.replace(settings, stream=False)
    slices = [f"{each.start}:{each.stop}" for each in plan.slices]
    return inputs_digest("repair", settings, load, model_digest, text_digest, slices)


def refuse_plan(plan: Plan) -> None:
    """Refuse a plan whose cut has no one place before each removed block.

    Raises:
        PlanError: It repeats or moves layers, or takes attention or MLP alone.
        ArchitectureError: It removes the first layer.
    """
    if plan.zeroed:
        raise PlanError(
            f"the plan takes parts of layers that stay ({plan.zeroed_words}): only whole layers "
            "that went can be made up for; slice and heal instead"
        )
    if plan.rearranges:
        raise PlanError(
            "the plan repeats or moves layers: a repair makes up for layers that went, and the "
            "others in their order; slice and heal instead"
        )
    if plan.removed and plan.removed[0][0] == 0:
        raise ArchitectureError(
            f"the plan removes {layers_in_words(plan.removed[:1])}: no layer stays before the "
            "first one that could make up for it; keep layer 0 (--protect 0), or slice and heal"
        )

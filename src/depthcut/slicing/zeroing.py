"""Attention or MLP taken from layers that stay: where zeros do it, and where not."""

from depthcut.architectures.fields import Cut
from depthcut.architectures.names import LayerNames
from depthcut.architectures.sublayers import PROVED, STREAM_NORMS, ended_part, is_plain
from depthcut.checkpoint.folder import Checkpoint
from depthcut.errors import ArchitectureError, PlanError
from depthcut.records import Plan


def refuse_zeroed(plan: Plan, what: str) -> None:
    """Refuse a plan with parts of layers where only whole layers can go.

    Raises:
        PlanError: It has some; `what` names what cannot be made so.
    """
    if plan.zeroed:
        raise PlanError(
            f"the plan takes {plan.zeroed_words} from layers that stay: {what} can "
            "lose whole layers only; search with --granularity layer"
        )


def refuse_unless_zero(plan: Plan, *, zero: bool) -> None:
    """Refuse a plan that makes weights zero, unless that is wanted, and the wish without need.

    Raises:
        PlanError: One of the two.
    """
    if plan.zeroed and not zero:
        raise PlanError(
            f"the plan takes {plan.zeroed_words} from layers that stay, which no "
            "config can say: with --zero their last projections are written as zeros, the result "
            "is exact and loads anywhere, and is neither smaller nor faster for it"
        )
    if zero and not plan.zeroed:
        raise PlanError("--zero, and the plan takes whole layers only: leave it out")


def refuse_zeros(checkpoint: Checkpoint, cut: Cut) -> None:
    """Refuse to zero what may not be silent then, or is no plain numbers.

    Raises:
        ArchitectureError: The model type is not proved, a layer has no such part, or its last
            projection is quantised.
    """
    if not cut.zeroed:
        return
    _refuse_unproved(checkpoint)
    names = LayerNames(checkpoint.architecture.stacks)
    found = dict.fromkeys(cut.zeroed, 0)
    for entry in checkpoint.tensors.values():
        tail = names.tail(entry.name)
        layer, part = names.layer(entry.name), ended_part(tail)
        if layer is None or part is None or (layer, part) not in cut.zeroed:
            continue
        if not is_plain(tail, entry.dtype):
            raise ArchitectureError(
                f"{checkpoint.folder}: {entry.name} is {entry.dtype}, packed or scaled, where zero "
                "bytes are no zero weights: zero the model that it was made of"
            )
        found[layer, part] += 1
    for (layer, part), count in found.items():
        if not count:
            raise ArchitectureError(
                f"{checkpoint.folder}: layer {layer} has no tensor that is known to end its {part}"
            )


def _refuse_unproved(checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    inner = config.get(checkpoint.architecture.decoder)
    types = {config.get("model_type"), inner.get("model_type") if isinstance(inner, dict) else None}
    if types.isdisjoint(PROVED):
        raise ArchitectureError(
            f"{checkpoint.folder} is of type {config.get('model_type')!r}, of which it is not "
            "proved that zeros in the last projection silence attention or MLP: only whole layers "
            "can go"
        )
    for key, value in STREAM_NORMS.items():
        if config.get(key) is value:
            raise ArchitectureError(
                f"{checkpoint.folder}: {key} is {value}, so that layers norm the residual stream "
                "itself: only whole layers can go"
            )

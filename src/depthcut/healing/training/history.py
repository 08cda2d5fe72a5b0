"""What a training tells of itself: losses and judgements, as the Trainer's history keeps them."""

import math
from collections.abc import Mapping, Sequence

from depthcut.records import HealJudgement
from depthcut.settings import HealSettings

History = Sequence[Mapping[str, float]]


def losses(history: History) -> list[tuple[int, float]]:
    return [(int(each["step"]), float(each["loss"])) for each in history if "loss" in each]


def judgements(history: History) -> tuple[HealJudgement, ...]:
    return tuple(
        HealJudgement(
            step=int(each["step"]),
            loss=float(each["eval_loss"]),
            next_token=float(each["eval_next_token"]),
        )
        for each in history
        if "eval_loss" in each
    )


def best_step(judged: Sequence[HealJudgement]) -> int | None:
    """The step of least loss, of those after which there was a checkpoint."""
    later = [each for each in judged if each.step and math.isfinite(each.loss)]
    return min(later, key=lambda each: each.loss).step if later else None


def helped(judged: Sequence[HealJudgement]) -> bool:
    """Whether the best step is better than none at all, as far as that was judged."""
    best = best_step(judged)
    return best is None or min(judged, key=lambda each: each.loss).step != 0


def enough(judged: Sequence[HealJudgement], settings: HealSettings) -> bool:
    """Whether as many judgements as patience allows came out no better than the best."""
    best = best_step(judged)
    since = [each for each in judged if best is not None and each.step > best]
    return bool(settings.patience) and len(since) >= settings.patience


def thinned(losses: Sequence[tuple[int, float]], most: int) -> tuple[tuple[int, float], ...]:
    size = math.ceil(len(losses) / most) or 1
    groups = [losses[start : start + size] for start in range(0, len(losses), size)]
    return tuple((group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups)

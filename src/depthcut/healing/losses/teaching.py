"""The losses of a healing, and the teacher that they ask."""

from collections.abc import Sequence

from depthcut.errors import SettingsError
from depthcut.healing.losses.kept_teacher import kept_teacher
from depthcut.healing.losses.objective import Objective, unbalanced
from depthcut.healing.losses.table import loss_weights
from depthcut.healing.losses.teachers import OnlineTeacher, Untouched, refuse_other_vocabulary
from depthcut.healing.rows import Rows
from depthcut.healing.weights.targets import cuts
from depthcut.model.loading import LoadedModel
from depthcut.records import Plan
from depthcut.settings import HealSettings, LoadSettings


def objective_of(
    loaded: LoadedModel,
    teacher: Untouched | None,
    rows: Rows,
    settings: HealSettings,
    *,
    load: LoadSettings,
    plan: Plan | None,
) -> Objective:
    """What is made small: the settings' losses, with the teacher that they ask.

    Args:
        loaded: The model that learns.
        teacher: Loaded here, unless all that it predicts is kept already.
        rows: The text.
        settings: Losses, and whether the teacher's predictions are kept.
        load: How the teacher is loaded.
        plan: Which layers of the teacher the model has; None: nobody knows.

    Raises:
        SettingsError: A teacher of another vocabulary, or one whose states cannot be compared;
            no experts to balance.
        OutputError: Its predictions cannot be kept.
    """
    weights = loss_weights(settings)
    config = loaded.model.config.get_text_config()
    if "balance" in weights and not hasattr(config, "output_router_logits"):
        raise unbalanced()
    if teacher is None:
        return Objective(weights)
    if settings.teacher_kept:
        kept = kept_teacher(teacher, rows, settings, load=load, student=loaded)
        return Objective(weights, teacher=kept)
    beside = teacher.load()
    refuse_other_vocabulary(loaded, beside)
    ours, theirs = _depths(loaded, beside, plan) if "hidden" in weights else ((), ())
    return Objective(
        weights,
        teacher=OnlineTeacher(beside, theirs, logits="kl" in weights),
        compared=[loaded.layers[depth - 1] for depth in ours],
        temperature=settings.temperature,
    )


def _depths(
    loaded: LoadedModel, teacher: LoadedModel, plan: Plan | None
) -> tuple[Sequence[int], Sequence[int]]:
    """From the first cut on, the depths of both models at which their states should be the same."""
    count, layers = len(loaded.layers), len(teacher.layers)
    kept = plan.kept_layers if plan else tuple(range(count))
    if (
        len(kept) != count
        or layers != (plan.model.layers if plan else count)
        or loaded.facts.hidden_size != teacher.facts.hidden_size
    ):
        raise SettingsError(
            f"--loss hidden: the teacher's {layers} layers are not those of which a plan.json "
            f"beside the weights kept {count}: give --teacher parent, or --loss kl"
        )
    first = min(cuts(plan), default=0) if plan else 0
    ours = range(max(first, 1), count + 1)
    return ours, [kept[depth] if depth < count else layers for depth in ours]

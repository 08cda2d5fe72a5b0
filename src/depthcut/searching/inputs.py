"""What a search depends on, known before any model is loaded."""

from pathlib import Path

from depthcut.errors import SettingsError
from depthcut.records import inputs_digest, layer_counts, layer_set, unit_set
from depthcut.settings import LoadSettings, PlanSettings, SearchSettings


def search_inputs(
    model_digest: str, text_digest: str, settings: SearchSettings, load: LoadSettings
) -> str:
    """Digest of a search's inputs: settings, model and text."""
    return inputs_digest("search", settings, load, model_digest, text_digest)


def refuse_unsearched(settings: SearchSettings, plan: PlanSettings, layers: int) -> None:
    """Refuse a plan that the search will not have found, before it is made.

    Args:
        settings: Of the search.
        plan: The budget; one in parameters is known only later.
        layers: Of the model.

    Raises:
        SettingsError: The layers are named, or the search looks for other numbers of them, or may
            take some that the plan protects.
        PlanError: Layers that the model does not have.
    """
    if plan.remove is not None:
        raise SettingsError("remove and a search: name the layers, or leave them to the search")
    by_parts = settings.granularity == "sublayer"
    every = 2 * layers if by_parts else layers
    searched_counts = layer_counts(str(settings.drop), every)
    wanted = layer_counts(str(plan.drop), every) if plan.drop is not None else ()
    wanted = (every - plan.keep,) if plan.keep is not None else wanted
    if len(wanted) > 1:
        raise SettingsError(f"drop {plan.drop}: a plan removes one number of layers, such as 7")
    for count in wanted:
        if count not in searched_counts:
            raise SettingsError(
                f"the plan removes {count} of {every} {'parts of ' * by_parts}layers, and the "
                "search's drop is "
                f"{settings.drop}: add {count} to it"
            )
    named = unit_set if by_parts else layer_set
    searched, planned = (set(named(each.protect or "", layers)) for each in (settings, plan))
    if missing := sorted(planned - searched):
        raise SettingsError(
            f"the plan protects layer {missing[0] // (every // layers)}, which the search may "
            "take: protect it there"
        )


def discard_other_journal(path: Path, inputs: str) -> None:
    """Remove a journal, if there is one, that was written for other inputs."""
    if path.exists():
        with path.open("rb") as file:
            of_these = inputs.encode() in file.readline()
        if not of_these:
            path.unlink()

"""What many choices of layers lose on a text: each measured once, what they share run once."""

from collections.abc import Iterable
from pathlib import Path

from depthcut.model.loading import LoadedModel
from depthcut.model.skipping import Losses, skipping
from depthcut.progress import progress
from depthcut.records import layers_in_words, merged
from depthcut.searching.journal import Journal
from depthcut.searching.trials import Removed, Trials, refuse_no_number
from depthcut.text.sequences import Sequences


def judge_choices(
    loaded: LoadedModel,
    sequences: Sequences,
    choices: Iterable[Removed],
    *,
    inputs: str,
    journal: Path | None = None,
    batch_size: int | None = None,
    title: str = "judge",
) -> dict[Removed, Losses]:
    """What each sequence of a text says of each choice, and of the untouched model, ().

    Nothing is sliced: the model runs without the layers. Choices that begin alike share the states
    up to where they part, and at no time more than one batch's states are kept.

    Args:
        loaded: The model; left as it was.
        sequences: The text; every sequence counts.
        choices: Removed layers, ascending; those that stand there twice are measured once.
        inputs: Digest of what the losses depend on (model, text), for the journal.
        journal: Where what was measured is written on the way. Called again with the same file,
            also with further choices, only what is missing is measured. It is kept.
        batch_size: Sequences in a forward pass; default: chosen from the memory at hand. What goes
            on behind a journal reads as many as that did.
        title: Of the progress bar.

    Returns:
        Losses by removed layers, (sequences,) each.

    Raises:
        ArchitectureError: The model cannot be run in part.
        OutputError: The journal is of another model or text.
        SettingsError: A loss is not a finite number.
    """
    wanted = {(), *choices}
    total = len(wanted) * len(sequences.sequences)
    with (
        Journal(journal, inputs) as diary,
        progress(title, total, unit="sequences") as advance,
        skipping(loaded, sequences, batch_size=diary.batch_size or batch_size) as skipper,
    ):
        trials = Trials(skipper, diary, advance=advance)
        for number in trials.batches:
            trials.measure(list(wanted), [number])
            skipper.forget(number)
        found = {removed: trials.losses(removed) for removed in wanted}
    for removed, losses in found.items():
        words = layers_in_words(merged(removed))
        refuse_no_number(losses, f"{loaded.facts.source} without {words}")
    return found

"""The stage: a method, a model and a text to the best choice of each number of layers."""

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from depthcut.errors import PlanError, SettingsError, nearest
from depthcut.measures import mean_and_error
from depthcut.model.loading import LoadedModel
from depthcut.model.ranks import all_ranks
from depthcut.model.skipping import Losses, skipping
from depthcut.progress import progress
from depthcut.records import (
    Alternative,
    Block,
    Cost,
    Estimate,
    FrontierPoint,
    Origin,
    Search,
    Sublayer,
    layer_counts,
    layer_set,
    merged,
    removal_in_words,
    sublayers_of,
    unit_set,
)
from depthcut.searching.asked import Asked
from depthcut.searching.inputs import search_inputs
from depthcut.searching.journal import Journal
from depthcut.searching.methods import METHODS
from depthcut.searching.trials import BudgetSpentError, Removed, Trials, refuse_no_number
from depthcut.settings import LoadSettings, SearchSettings
from depthcut.text.sequences import Sequences

_log = logging.getLogger(__name__)

RUNNERS_UP = 5
_AT_LEAST_ONE = (
    *("largest_block", "beam_width", "shortlist", "gradients"),
    *("initially_generated", "initial_tokens", "offspring", "max_mutations", "batch_size"),
)
"""Settings."""


def search_model(
    loaded: LoadedModel,
    sequences: Sequences,
    settings: SearchSettings,
    load: LoadSettings,
    *,
    journal: Path | None = None,
) -> Search:
    """Find the layers that a model can best spare, by measuring what their removal costs.

    Args:
        loaded: The model; left as it was.
        sequences: The text; each sequence is one observation.
        settings: The method and what bounds it.
        load: How the model was loaded, for the record.
        journal: Where what was measured is written on the way. The same search begun again with
            the same file goes on where it was killed. Of several processes, the first one's.

    Raises:
        SettingsError: No such method, a number that cannot be meant, or a loss of the model, or of
            the best choice, that is no finite number.
        PlanError: More layers than may go.
        ArchitectureError: The model cannot be run in part.
        OutputError: The journal is another search's.
        RanksError: Of several processes one ended, or measures something else.
    """
    asked = resolve(settings, loaded.facts.layers)
    method = METHODS[settings.method]
    inputs = search_inputs(loaded.facts.digest, sequences.facts.digest, settings, load)
    ranks = all_ranks()
    ranks.refuse_different(inputs, "model, text or setting")
    started = time.monotonic()
    with (
        Journal(journal, inputs, ranks=ranks) as diary,
        progress(f"search: {settings.method}", None, unit="sequences") as advance,
        skipping(
            loaded,
            sequences,
            batch_size=settings.batch_size or diary.batch_size,
            parts=settings.granularity == "sublayer",
        ) as skipper,
    ):
        trials = Trials(
            skipper,
            diary,
            objective=settings.objective,
            error_rate=settings.error_rate,
            minutes=settings.minutes,
            evaluations=settings.evaluations,
            advance=advance,
            ranks=ranks,
            parts=settings.granularity == "sublayer",
        )
        _warn_of_idle(ranks.count, trials)
        try:
            untouched = trials.losses(())
        except BudgetSpentError as error:
            raise SettingsError(
                "the budget was spent before the untouched model had read the text: raise "
                "--minutes or --evaluations"
            ) from error
        refuse_no_number(untouched, loaded.facts.source)
        chosen: dict[int, tuple[Removed, Cost]] = {}
        complete = True
        try:
            for removed in method.function(settings.method)(trials, asked):
                known, _ = chosen.get(len(removed), (None, None))
                if known is None or trials.mean(removed) < trials.mean(known):
                    # On the whole text, or it does not count.
                    words = removal_in_words(*_places(removed, settings))
                    losses = trials.losses(removed)
                    refuse_no_number(losses, f"{loaded.facts.source} without {words}")
                    chosen[len(removed)] = removed, _cost(loaded, trials)
                advance(0, _note(removed, trials, settings))
        except BudgetSpentError:
            complete = False
        frontier = tuple(
            _point(*chosen[count], trials, untouched, settings) for count in sorted(chosen)
        )
        cost = _cost(loaded, trials)
    return Search(
        origin=Origin.since(started, inputs=inputs),
        model=loaded.facts,
        text=sequences.facts,
        settings=settings,
        load=load,
        paper=method.paper,
        untouched=_estimate(untouched.loss),
        frontier=frontier,
        complete=complete,
        cost=cost,
    )


def resolve(settings: SearchSettings, layers: int) -> Asked:
    """What is asked for of a model of so many layers.

    Raises:
        SettingsError: No such method, or a number that cannot be meant.
        PlanError: More layers than may go.
    """
    if settings.method not in METHODS:
        raise SettingsError(
            f"no method {settings.method!r}{nearest(settings.method, METHODS)}: choose one of "
            f"{', '.join(METHODS)}"
        )
    if not 0 <= settings.error_rate < 0.5:
        raise SettingsError(f"error rate {settings.error_rate}: from 0 to below 0.5, such as 0.05")
    _check_numbers(settings)
    by_parts = settings.granularity == "sublayer"
    if by_parts and not METHODS[settings.method].parts:
        able = ", ".join(name for name, each in METHODS.items() if each.parts)
        raise SettingsError(
            f"{settings.method} knows whole layers only: choose one of {able}, or leave "
            "--granularity out"
        )
    every = 2 * layers if by_parts else layers
    counts = layer_counts(str(settings.drop), every)
    protected = (unit_set if by_parts else layer_set)(settings.protect or "", layers)
    free = tuple(layer for layer in range(every) if layer not in protected)
    if counts[-1] > len(free):
        raise PlanError(
            f"drop {settings.drop}: only {len(free)} {'parts of ' * by_parts}layers may go beside "
            f"the protected {settings.protect}; protect fewer or drop fewer"
        )
    return Asked(counts, free, settings)


def _check_numbers(settings: SearchSettings) -> None:
    for name in _AT_LEAST_ONE:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise SettingsError(f"{name} {value}: at least 1")
    if settings.generations is not None and settings.generations < 0:
        raise SettingsError(f"generations {settings.generations}: at least 0")
    survivors, tokens = settings.survivors_per_selection, settings.tokens_per_selection
    if len(survivors) != len(tokens) or not survivors or min(*survivors, *tokens) < 1:
        raise SettingsError(
            f"survivors_per_selection {_numbers(survivors)} and tokens_per_selection "
            f"{_numbers(tokens)}: as many of one as of the other, each at least 1"
        )
    if survivors[-1] != 1:
        raise SettingsError(
            f"survivors_per_selection {_numbers(survivors)}: the last selection must leave 1, the "
            "next parent"
        )


def _numbers(values: Sequence[int]) -> str:
    return " ".join(map(str, values))


def _warn_of_idle(processes: int, trials: Trials) -> None:
    if (batches := len(trials.batches)) < processes:
        each = max(1, trials.sequences // processes)
        _log.warning(
            "%d processes share %d batches: %d have nothing to do; give more --tokens, or "
            "--batch-size %d",
            *(processes, batches, processes - batches, each),
        )


def _places(
    removed: Removed, settings: SearchSettings
) -> tuple[tuple[Block, ...], tuple[Sublayer, ...]]:
    """What goes, as layers and parts of layers."""
    return sublayers_of(removed) if settings.granularity == "sublayer" else (merged(removed), ())


def _point(
    removed: Removed, cost: Cost, trials: Trials, untouched: Losses, settings: SearchSettings
) -> FrontierPoint:
    layers, parts = _places(removed, settings)
    found = trials.losses(removed)
    scores = trials.scores(removed)
    others = [
        each
        for each in trials.measured(len(removed))
        if each != removed and math.isfinite(trials.mean(each))
    ]
    return FrontierPoint(
        removed=layers,
        zeroed=parts,
        loss=_estimate(found.loss),
        loss_difference=_estimate(found.loss - untouched.loss),
        kl_divergence=_estimate(found.divergence),
        runners_up=tuple(
            Alternative(
                removed=_places(other, settings)[0],
                zeroed=_places(other, settings)[1],
                score=trials.mean(other),
                difference=_estimate(trials.scores(other) - scores),
            )
            for other in others[:RUNNERS_UP]
        ),
        cost=cost,
    )


def _cost(loaded: LoadedModel, trials: Trials) -> Cost:
    work, seconds = trials.spent
    return Cost(
        seconds=round(seconds, 3),
        forwards=work.forwards(loaded, trials.sequences),
        layer_passes=work.layers,
        head_passes=work.heads,
        evaluations=trials.evaluations,
    )


def _note(removed: Removed, trials: Trials, settings: SearchSettings) -> str:
    words = removal_in_words(*_places(removed, settings))
    return f"without {words}: {trials.mean(removed):.3f} nats"


def _estimate(values: Tensor) -> Estimate:
    value, error = mean_and_error(values)
    return Estimate(value=value, stderr=error)

"""A sweep and a search, made up but shaped like real ones: no model, no numpy."""

import math
import random
from array import array
from collections.abc import Sequence

from depthcut.records import (
    Alternative,
    Choice,
    Cost,
    Estimate,
    FrontierPoint,
    JudgedText,
    Judgement,
    Search,
    Sweep,
    TextFacts,
    Way,
    merged,
)
from depthcut.records.sweep import ratio_estimate
from depthcut.settings import LoadSettings, SearchSettings, SweepSettings
from tests.reporting.run_for_tests import ORIGIN, make_facts

WAYS = ("greedy", "kl-block", "angular", "angular/last", "block-influence", "last", "random:0")
"""Best first."""
TEXTS = ("wikitext2/valid.txt", "code/codealpaca.jsonl[instruction,output]")
SEQUENCES = 24


def make_sweep(
    layers: int = 30,
    counts: Sequence[int] = (1, 2, 3, 4, 5, 6, 7),
    *,
    ways: Sequence[str] = WAYS,
    texts: Sequence[str] = TEXTS,
    source: str = "smollm2",
) -> Sweep:
    """Each way takes the layers behind its place; the further back in `ways`, the more it loses."""
    numbers = random.Random(0)
    removed = {
        (way, count): tuple((place + 2 * step) % layers for step in range(count))
        for place, way in enumerate(ways)
        for count in counts
    }
    worth = {
        merged(removed[way, count]): (1 + 0.35 * place) * 0.09 * count * 1.12**count
        for place, way in enumerate(ways)
        for count in counts
    }
    return Sweep(
        origin=ORIGIN,
        model=make_facts(layers, source=source),
        settings=SweepSettings(criteria=tuple(ways), judge=tuple(texts)),
        load=LoadSettings(),
        calibration="wikitext2/train.txt",
        calibration_digest="d" * 32,
        ways=tuple(_way(way, removed, counts) for way in ways),
        judged=tuple(_judged(text, worth, numbers) for text in texts),
    )


def make_search(layers: int = 30, *, source: str = "smollm2", complete: bool = True) -> Search:
    counts = range(1, min(7, layers - 1) + 1)
    return Search(
        origin=ORIGIN,
        model=make_facts(layers, source=source),
        text=TextFacts(source="builtin", digest="d" * 32, sequences=64, tokens=16_384),
        settings=SearchSettings(method="greedy"),
        load=LoadSettings(),
        paper="Song et al. 2024, SLEB, arXiv:2402.09025",
        untouched=Estimate(value=3.0, stderr=0.03),
        frontier=tuple(_found(count, layers) for count in counts),
        complete=complete,
        cost=_cost(len(counts)),
    )


def _way(name: str, removed: dict[tuple[str, int], tuple[int, ...]], counts: Sequence[int]) -> Way:
    kind = "baseline" if name[:4] in ("last", "rand") else "criterion"
    kind = "search" if name.startswith("greedy") else kind
    forwards = {"baseline": 0.0, "criterion": 0.8}.get(kind, 40.0)
    choices = tuple(
        Choice(
            removed=merged(removed[name, count]),
            seconds=forwards * (count if kind == "search" else 1),
            forwards=forwards * (count if kind == "search" else 1),
        )
        for count in counts
    )
    return Way(
        name=name,
        kind=kind,  # type: ignore[arg-type]
        paper="none",
        tokens=16_384,
        seconds=choices[-1].seconds,
        forwards=choices[-1].forwards,
        choices=choices,
    )


def _judged(
    source: str, worth: dict[tuple[tuple[int, int], ...], float], numbers: random.Random
) -> JudgedText:
    sizes = (511,) * SEQUENCES
    untouched = [3.3 + 0.3 * numbers.gauss(0, 1) for _ in sizes]
    return JudgedText(
        text=TextFacts(source=source, digest="e" * 32, sequences=SEQUENCES, tokens=512 * SEQUENCES),
        predicted=sizes,
        judgements=tuple(
            _judgement(removed, [lost * (1 + 0.2 * numbers.gauss(0, 1)) for _ in sizes], untouched)
            for removed, lost in {(): 0.0, **worth}.items()
        ),
    )


def _judgement(
    removed: tuple[tuple[int, int], ...], lost: Sequence[float], untouched: Sequence[float]
) -> Judgement:
    sizes = (511,) * len(lost)
    losses = [one + other for one, other in zip(untouched, lost, strict=True)]
    loss = ratio_estimate(losses, sizes)
    perplexity = math.exp(loss.value)
    return Judgement(
        removed=removed,
        loss=loss,
        perplexity=Estimate(value=perplexity, stderr=perplexity * loss.stderr),
        loss_difference=ratio_estimate(lost, sizes),
        kl_divergence=ratio_estimate([0.9 * each for each in lost], sizes),
        by_sequence=array("f", [*losses, *(0.9 * each for each in lost)]).tobytes(),
    )


def _found(count: int, layers: int) -> FrontierPoint:
    def estimate(value: float) -> Estimate:
        return Estimate(value=value, stderr=value / 20)

    first, second = ((place, place + count) for place in (layers - count - 1, layers - count))
    return FrontierPoint(
        removed=(first,),
        loss=estimate(3 + 0.1 * count),
        loss_difference=estimate(0.1 * count),
        kl_divergence=estimate(0.09 * count),
        runners_up=(
            Alternative(
                removed=(second,),
                score=0.1 * count,
                difference=Estimate(value=0.01 * count, stderr=0.02),
            ),
        ),
        cost=_cost(count),
    )


def _cost(count: int) -> Cost:
    return Cost(
        seconds=12.5 * count,
        forwards=14.2 * count,
        layer_passes=27_000 * count,
        head_passes=1_900 * count,
        evaluations=30.0 * count,
    )

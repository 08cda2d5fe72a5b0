"""Models beside each other: how good, how large and how fast, and which no other one beats."""

from collections.abc import Sequence
from dataclasses import dataclass

from depthcut.records import Bench, Estimate, Evaluation, ModelFacts
from depthcut.reporting.benchmarks.scores import AS_IT_IS, PERCENT, Scale, scale_of


@dataclass(frozen=True)
class Quality:
    """By what the models are judged."""

    name: str
    higher_is_better: bool
    scale: Scale
    found: dict[str, Estimate]
    """By model; those that lack it are not there."""


@dataclass(frozen=True)
class Place:
    """One model among all."""

    name: str
    model: ModelFacts
    quality: Estimate
    speed: float | None
    """New tokens per second; None: it was not timed."""
    leads_size: bool
    """No other model is as good and smaller, or as small and better."""
    leads_speed: bool
    """The same of speed."""


@dataclass(frozen=True)
class ModelFrontier:
    """All models that have a quality, in the evaluation's order."""

    quality: Quality
    places: tuple[Place, ...]
    speed: str
    """What `Place.speed` is; empty: nobody was timed."""


def model_frontier(evaluation: Evaluation, bench: Bench | None) -> ModelFrontier | None:
    """Quality against size and, where the same models were timed, speed; None: fewer than two.

    Quality is the average of the benchmarks where every model has one, else perplexity, else the
    first benchmark. Timed models are found by their digests.
    """
    quality = _quality(evaluation)
    if quality is None or len(quality.found) < 2:
        return None
    speeds = _speeds(bench)
    judged = [each for each in evaluation.models if each.name in quality.found]
    sign = 1 if quality.higher_is_better else -1
    good = [sign * quality.found[each.name].value for each in judged]
    small = [-float(each.model.parameters) for each in judged]
    fast = [speeds.get(each.model.digest) for each in judged]
    by_size, by_speed = pareto(good, small), pareto(good, fast)
    places = tuple(
        Place(each.name, each.model, quality.found[each.name], speed, leads_size, leads_speed)
        for each, speed, leads_size, leads_speed in zip(
            judged, fast, by_size, by_speed, strict=True
        )
    )
    timed = sum(speed is not None for speed in fast) > 1
    words = _speed_words(bench) if bench and timed else ""
    return ModelFrontier(quality, places, words)


def pareto(good: Sequence[float], cheap: Sequence[float | None]) -> list[bool]:
    """Which places no other one beats: at least as high by both, and higher by one.

    Places without a value belong to no set and beat nobody.
    """
    return [
        mine is not None
        and not any(
            other is not None
            and value >= quality
            and other >= mine
            and (value > quality or other > mine)
            for value, other in zip(good, cheap, strict=True)
        )
        for quality, mine in zip(good, cheap, strict=True)
    ]


def _quality(evaluation: Evaluation) -> Quality | None:
    names = [each.name for each in evaluation.models]
    tasks = evaluation.tasks
    if tasks:
        averages = {each.model: each.value for each in tasks.averages}
        if averages and all(name in averages for name in names):
            count = len(tasks.averages[0].tasks)
            return Quality(f"average of {count} benchmarks, %", True, PERCENT, averages)
    perplexities = {each.name: each.perplexity for each in evaluation.models if each.perplexity}
    if perplexities:
        return Quality("perplexity", False, AS_IT_IS, perplexities)
    if not tasks or not tasks.chief:
        return None
    task = tasks.chief[0]
    scale = scale_of(tasks, task)
    scores = {name: found for name in names if (found := tasks.score(name, task))}
    named = ", ".join(filter(None, (task.name, scale.unit)))
    return Quality(
        named,
        task.higher_is_better,
        scale,
        {
            name: Estimate(value=each.value, stderr=each.stderr or 0.0)
            for name, each in scores.items()
        },
    )


def _speeds(bench: Bench | None) -> dict[str, float]:
    """New tokens per second at the first batch size, by the model's digest."""
    if bench is None:
        return {}
    return {
        each.model.digest: each.timings[0].decode.median for each in bench.models if each.timings
    }


def _speed_words(bench: Bench) -> str:
    size = bench.settings.batch_sizes[0]
    return f"new tokens per second, {bench.settings.engine}, batch {size}"

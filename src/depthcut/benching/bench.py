"""The stage: every model in one engine, timed in turn, against the first of them."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from depthcut.benching.engine import Engine, Run, random_prompts
from depthcut.benching.footprint import measure_footprint
from depthcut.benching.inputs import bench_inputs, refuse_unmeant
from depthcut.benching.machine import cpu_name
from depthcut.benching.meters import Meter, meters
from depthcut.benching.work import ideal_decode, ideal_prefill
from depthcut.errors import SettingsError
from depthcut.progress import progress
from depthcut.records import Bench, BenchedModel, Energy, Origin, SpeedRatio, Spread, Timing
from depthcut.settings import BenchSettings, LoadSettings


def bench_models(
    models: Mapping[str, Engine],
    settings: BenchSettings,
    load: LoadSettings,
    *,
    sources: Mapping[str, str | Path] | None = None,
) -> Bench:
    """Time models at every batch size; the first is the reference of the ratios.

    One uncounted round warms up; then in each round every model takes its turn (A B C, A B C,
    …), so that what slows the machine for a while slows all of them, and ratios are taken within
    rounds. The prompts are random tokens, the same for all.

    Args:
        models: Opened, by the name to show, in the order to show.
        sources: Where models came from whose peak memory on the CPU is measured: each is loaded
            and run once more in a fresh process.

    Raises:
        SettingsError: No model, numbers below their least, or more tokens than a model has
            positions.
    """
    started = time.monotonic()
    refuse_unmeant(settings)
    if not models:
        raise SettingsError("no model to time: name at least one")
    refuse_too_long(models, settings)
    facts = {name: each.facts for name, each in models.items()}  # known before anything is timed
    gpus = sorted({gpu for each in models.values() for gpu in each.gpus})
    laps = measure(models, settings, meters(gpus))
    peaks = _peaks(models, laps, sources or {}, settings, load)
    first = next(iter(models.values()))
    return Bench(
        origin=Origin.since(
            started,
            inputs=bench_inputs([each.digest for each in facts.values()], settings, load),
        ),
        settings=settings,
        load=load,
        versions=first.versions,
        cpu=cpu_name(),
        device=first.device,
        threads=first.threads,
        models=tuple(
            BenchedModel(
                name=name,
                model=facts[name],
                weight_bytes=each.weight_bytes,
                read_bytes=each.work.read_bytes,
                peak_memory_bytes=peaks.get(name),
                timings=tuple(
                    _timing(laps[size][name], size, settings) for size in settings.batch_sizes
                ),
            )
            for name, each in models.items()
        ),
        ratios=_ratios(models, laps, settings),
    )


@dataclass
class Laps:
    """The counted runs of one model at one batch size, one a round."""

    runs: list[Run] = field(default_factory=list)
    joules: dict[str, list[float]] = field(default_factory=dict)
    """By meter."""


def measure(
    models: Mapping[str, Engine], settings: BenchSettings, counting: Sequence[Meter] = ()
) -> dict[int, dict[str, Laps]]:
    """The runs by batch size and model, the models in turn; the first round is not among them."""
    laps = {size: {name: Laps() for name in models} for size in settings.batch_sizes}
    vocabulary = min(each.vocabulary for each in models.values())
    total = len(models) * (settings.rounds + 1) * len(settings.batch_sizes)
    with progress("bench", total, unit="runs") as advance:
        for size in settings.batch_sizes:
            prompts = random_prompts(vocabulary, settings.prompt_tokens, size)
            for turn in range(settings.rounds + 1):
                for name, engine in models.items():
                    before = [meter.read() for meter in counting]
                    run = engine.once(prompts, settings.new_tokens)
                    after = [meter.read() for meter in counting]
                    if turn:
                        lap = laps[size][name]
                        lap.runs.append(run)
                        for meter, start, stop in zip(counting, before, after, strict=True):
                            used = meter.joules(start, stop)
                            lap.joules.setdefault(meter.name, []).append(used)
                    rate = size * (settings.new_tokens - 1) / run.decode_seconds
                    advance(1, f"{name}, batch {size}: {rate:.1f} tokens/s decoding")
    return laps


def refuse_too_long(models: Mapping[str, Engine], settings: BenchSettings) -> None:
    """Raise SettingsError where a run needs more positions than a model has."""
    needed = settings.prompt_tokens + settings.new_tokens
    for name, engine in models.items():
        limit = engine.positions
        if limit is not None and needed > limit:
            raise SettingsError(
                f"{needed} tokens are timed (--prompt-tokens and --new-tokens), but {name} has "
                f"{limit} positions: lower them"
            )


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles (linear between the sorted values) of the rounds."""
    low, median, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    )
    return Spread(median=median, low=low, high=high, rounds=tuple(values))


def _timing(laps: Laps, size: int, settings: BenchSettings) -> Timing:
    read, new = size * settings.prompt_tokens, size * settings.new_tokens
    caches = [run.cache_bytes for run in laps.runs if run.cache_bytes is not None]
    return Timing(
        batch_size=size,
        first_token=spread([run.prefill_seconds for run in laps.runs]),
        prefill=spread([read / run.prefill_seconds for run in laps.runs]),
        decode=spread([(new - size) / run.decode_seconds for run in laps.runs]),
        throughput=spread([new / _seconds(run) for run in laps.runs]),
        cache_bytes=max(caches, default=None),
        energy=tuple(
            Energy(meter=name, joules_per_token=spread([each / new for each in joules]))
            for name, joules in laps.joules.items()
        ),
    )


def _seconds(run: Run) -> float:
    return run.prefill_seconds + run.decode_seconds


def _ratios(
    models: Mapping[str, Engine],
    laps: Mapping[int, Mapping[str, Laps]],
    settings: BenchSettings,
) -> tuple[SpeedRatio, ...]:
    (reference, first), *others = models.items()
    found = []
    for name, engine in others:
        for size in settings.batch_sizes:
            pairs = list(zip(laps[size][reference].runs, laps[size][name].runs, strict=True))
            found.append(
                SpeedRatio(
                    name=name,
                    batch_size=size,
                    first_token=spread([a.prefill_seconds / b.prefill_seconds for a, b in pairs]),
                    decode=spread([a.decode_seconds / b.decode_seconds for a, b in pairs]),
                    throughput=spread([_seconds(a) / _seconds(b) for a, b in pairs]),
                    ideal_prefill=ideal_prefill(first.work, engine.work, settings.prompt_tokens),
                    ideal_decode=ideal_decode(first.work, engine.work),
                )
            )
    return tuple(found)


def _peaks(
    models: Mapping[str, Engine],
    laps: Mapping[int, Mapping[str, Laps]],
    sources: Mapping[str, str | Path],
    settings: BenchSettings,
    load: LoadSettings,
) -> dict[str, int | None]:
    largest = laps[max(settings.batch_sizes)]
    peaks = {
        name: max((run.device_bytes for run in of.runs if run.device_bytes), default=None)
        for name, of in largest.items()
    }
    apart = [name for name in models if name in sources and models[name].device == "cpu"]
    if not apart:
        return peaks
    with progress("bench: memory", len(apart), unit="models") as advance:
        for name in apart:
            peaks[name] = measure_footprint(sources[name], settings, load)
            advance(1, name)
    return peaks

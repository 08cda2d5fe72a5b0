"""The stage: every model on the same text, the same prompts and the same questions.

Nothing here imports torch: where all was measured before, no model is loaded.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import msgspec

from depthcut.errors import SettingsError
from depthcut.evaluation.benchmarks.answers import Unit
from depthcut.evaluation.benchmarks.asked import Asked, answers_key, asked_tasks
from depthcut.evaluation.benchmarks.results import task_results
from depthcut.evaluation.benchmarks.samples import samples_file, write_samples
from depthcut.evaluation.candidates import Candidate
from depthcut.evaluation.inputs import evaluation_inputs, text_key, writing_key
from depthcut.evaluation.judgements import Judgement, Writing
from depthcut.evaluation.kept import find, half_done, keep
from depthcut.evaluation.prompts import read_prompts
from depthcut.launched import launched
from depthcut.records import (
    Comparison,
    Evaluation,
    ModelEvaluation,
    Origin,
    Record,
    TaskResults,
)
from depthcut.settings import EvaluateSettings, LoadSettings

if TYPE_CHECKING:
    from depthcut.evaluation.benchmarks.harness import Harness
    from depthcut.model.loading import LoadedModel
    from depthcut.text.sequences import Sequences

R = TypeVar("R", bound=Record)
T = TypeVar("T")


class Reading:
    """The text that models are judged on."""

    def __init__(self, digest: str, sequences: "Callable[[LoadedModel], Sequences]") -> None:
        self.digest, self.sequences = digest, sequences


def evaluate_models(
    candidates: Sequence[Candidate],
    reading: Reading | None,
    settings: EvaluateSettings,
    load: LoadSettings,
    *,
    fresh: bool = False,
    out: Path | None = None,
) -> Evaluation:
    """Judge models; the first is the reference of the comparisons.

    What was measured before of the same models, text, prompts, tasks and settings is taken from
    the cache.

    Args:
        candidates: In the order to show.
        reading: The text; None: judged on none.
        settings: What is measured.
        load: How the models are loaded.
        fresh: Measure anew what was measured before.
        out: Where the record will lie; the items of tasks are written beside it.

    Raises:
        SettingsError: No model, different tokenizers, numbers below their least, or unknown tasks.
        CheckpointError: A model's loss is not a finite number.
        TextError: Fewer than two sequences.
        SourceError: The file of prompts, or the data of a task, cannot be read.
        MissingExtraError: Tasks without lm-eval.
    """
    started = time.monotonic()
    _check(settings, candidates)
    prompts = read_prompts(settings.prompts) if settings.new_tokens else ()
    asked = asked_tasks(settings)
    answered = _Answered(candidates, settings, load, fresh=fresh)
    answered.refuse_unanswerable(asked)
    judgement = writing = None
    models = [each.digest for each in candidates]
    if reading is not None:
        key = text_key(models, reading.digest, settings, load)
        judgement = _kept(
            key, Judgement, lambda: _judge(candidates, reading, settings), fresh=fresh
        )
    if prompts:
        key = writing_key(models, prompts, settings, load)
        write = partial(_write, candidates, prompts, settings)
        writing = _kept(key, Writing, write, fresh=fresh)
    tasks = answered.results(asked, out=out) if asked else None
    evaluated, comparisons = _side_by_side(candidates, judgement, writing)
    digests = [each.facts.digest for each in candidates]
    inputs = evaluation_inputs(digests, reading.digest if reading else "", settings, load)
    return Evaluation(
        origin=Origin.since(started, inputs=inputs),
        text=judgement.text if judgement else None,
        settings=settings,
        load=load,
        prompts=prompts,
        models=evaluated,
        comparisons=comparisons,
        tasks=tasks,
    )


def refuse_unanswerable(settings: EvaluateSettings) -> None:
    """Raise for tasks that are unknown, or whose data is not there.

    Raises:
        SettingsError: Unknown tasks, or settings that cannot be meant.
        SourceError: The data of a task cannot be read.
        MissingExtraError: Tasks without lm-eval.
    """
    asked = asked_tasks(settings)
    if asked:
        from depthcut.evaluation.benchmarks.harness import Harness

        harness = Harness(settings)
        for each in asked:
            harness.load(each)


class _Answered:
    """Answers of models to tasks, from the cache where they are there."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        settings: EvaluateSettings,
        load: LoadSettings,
        *,
        fresh: bool,
    ) -> None:
        self._candidates, self._settings, self._load = candidates, settings, load
        self._fresh = fresh
        self._harness: Harness | None = None

    def refuse_unanswerable(self, asked: Sequence[Asked]) -> None:
        """Raise for unknown tasks and missing data before any model is loaded."""
        for each in asked:
            if any(self._found(each, candidate) is None for candidate in self._candidates):
                self._opened().load(each)

    def results(self, asked: Sequence[Asked], *, out: Path | None) -> TaskResults:
        units: dict[str, tuple[Unit, ...]] = {}
        for candidate in self._candidates:
            units[candidate.name] = tuple(self._unit(each, candidate) for each in asked)
            candidate.let_go()
        path = samples_file(out) if out is not None else None
        found = task_results(units, samples=path.name if path else "")
        if path is not None and not launched().rank:
            write_samples(units, path)
        return found

    def _unit(self, asked: Asked, candidate: Candidate) -> Unit:
        found = self._found(asked, candidate)
        if found is not None:
            return found
        key = self._key(asked, candidate)
        # The first alone removes what is old: a later one would remove what the first just began.
        parts = _of_first(lambda: half_done(key, fresh=self._fresh))
        unit = self._opened().answer(asked, candidate, parts=parts)
        if not launched().rank:
            keep(key, unit)
        return unit

    def _found(self, asked: Asked, candidate: Candidate) -> Unit | None:
        if self._fresh:
            return None
        key = self._key(asked, candidate)
        return _of_first(lambda: unit if (unit := find(key, Unit)) and unit.holds else None)

    def _key(self, asked: Asked, candidate: Candidate) -> str:
        return answers_key(asked, candidate.digest, self._settings, self._load)

    def _opened(self) -> "Harness":
        from depthcut.evaluation.benchmarks.harness import Harness

        if self._harness is None:
            self._harness = Harness(self._settings, self._load)
        return self._harness


def _kept(key: str, kind: type[R], make: Callable[[], R], *, fresh: bool) -> R:
    """What is kept under a key, else what is made now; of several processes the first makes it."""
    found = None if fresh else _of_first(lambda: find(key, kind))
    if found is None:
        found = _of_first(make)
        if not launched().rank:
            keep(key, found)
    return found


def _of_first(make: Callable[[], T]) -> T:
    """What the first process comes to; the others wait for it."""
    if launched().count == 1:
        return make()
    from depthcut.model.ranks import all_ranks

    ranks = all_ranks()
    return ranks.of_first(make() if ranks.rank == 0 else cast(T, None))


def _judge(
    candidates: Sequence[Candidate], reading: Reading, settings: EvaluateSettings
) -> Judgement:
    from depthcut.evaluation.quality import judge, refuse_unpaired

    models = {each.name: each.loaded for each in candidates}
    refuse_unpaired(models)
    sequences = reading.sequences(candidates[0].loaded)
    with _in_eval_mode(*models.values()):
        qualities, comparisons = judge(models, sequences, batch_size=settings.batch_size)
    return Judgement(
        text=sequences.facts,
        qualities=tuple(qualities[name] for name in models),
        comparisons=comparisons,
    )


def _write(
    candidates: Sequence[Candidate], prompts: Sequence[str], settings: EvaluateSettings
) -> Writing:
    from depthcut.evaluation.degeneration import degeneration_of
    from depthcut.evaluation.generation import generate_all
    from depthcut.evaluation.plausibility import reference_perplexity
    from depthcut.evaluation.quality import why_unpaired

    models = {each.name: each.loaded for each in candidates}
    reference, *others = models
    with _in_eval_mode(*models.values()):
        written = generate_all(models, prompts, new_tokens=settings.new_tokens)
        comparable = [name for name in others if not why_unpaired(models[reference], models[name])]
        perplexities = {
            name: reference_perplexity(models[reference], written[name])
            for name in (reference, *comparable)
        }
    return Writing(
        generations=tuple(tuple(each.text for each in written[name]) for name in models),
        degenerations=tuple(
            degeneration_of(
                written[name],
                written[reference] if name in comparable else None,
                reference_perplexity=perplexities.get(name),
            )
            for name in models
        ),
    )


@contextlib.contextmanager
def _in_eval_mode(*models: "LoadedModel") -> Iterator[None]:
    from depthcut.model.loading import in_eval_mode

    with ExitStack() as modes:
        for each in models:
            modes.enter_context(in_eval_mode(each.model))
        yield


def _side_by_side(
    candidates: Sequence[Candidate], judgement: Judgement | None, writing: Writing | None
) -> tuple[tuple[ModelEvaluation, ...], tuple[Comparison, ...]]:
    """The parts by model, under the names that the models have this time."""
    models = []
    for place, each in enumerate(candidates):
        quality = judgement.qualities[place] if judgement else None
        models.append(
            ModelEvaluation(
                name=each.name,
                model=each.facts,
                loss=quality.loss if quality else None,
                perplexity=quality.perplexity if quality else None,
                bits_per_byte=quality.bits_per_byte if quality else None,
                texts=quality.texts if quality else (),
                generations=writing.generations[place] if writing else (),
                degeneration=writing.degenerations[place] if writing else None,
            )
        )
    compared = judgement.comparisons if judgement else ()
    comparisons = (
        msgspec.structs.replace(comparison, name=each.name)
        for each, comparison in zip(candidates[1:], compared, strict=False)
    )
    return tuple(models), tuple(comparisons)


def _check(settings: EvaluateSettings, candidates: Sequence[Candidate]) -> None:
    if not candidates:
        raise SettingsError("no model to evaluate: name at least one")
    least = {"new_tokens": 0, "tokens": 0}
    if settings.batch_size is not None:
        least["batch_size"] = 1
    for field, minimum in least.items():
        if (value := getattr(settings, field)) < minimum:
            option = field.replace("_", "-")
            raise SettingsError(f"--{option} {value}: expected a number of at least {minimum}")
    if not (settings.tokens or settings.new_tokens or settings.tasks):
        raise SettingsError(
            "--tokens 0 and --new-tokens 0 leave nothing to measure: name --tasks, or leave one out"
        )

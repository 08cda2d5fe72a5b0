"""What models are worth: evaluate, bench, report."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from depthcut.api.inputs import load_source, open_documents, sequences_for
from depthcut.errors import ArchitectureError, SettingsError
from depthcut.launched import launched
from depthcut.records import Bench, Evaluation, write_record
from depthcut.settings import BenchSettings, EvaluateSettings, LoadSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from depthcut.evaluation.candidates import Candidate


def evaluate(
    models: Sequence[str | Path] | Mapping[str, str | Path | PreTrainedModel],
    settings: EvaluateSettings | None = None,
    *,
    texts: Sequence[str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    load: LoadSettings | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    fresh: bool = False,
) -> Evaluation:
    """Judge models on the same text, prompts and questions, paired with the first.

    What was measured before is taken from the cache: the same call again takes a moment.

    Args:
        models: Sources, or names for sources and models in memory; the first is the reference.
        settings: Which text, prompts and tasks; see `EvaluateSettings`.
        texts: Documents in memory, instead of `settings.text`.
        tokenizer: For models in memory.
        load: Device and dtype of models that are loaded here.
        out: Where to write the record as JSON; the items of tasks go beside it.
        overwrite: Replace what is there.
        fresh: Measure anew what was measured before.

    Raises:
        DepthcutError: One of its kinds, see `depthcut.errors`.
    """
    from depthcut.evaluation.evaluate import Reading, evaluate_models

    settings, load = settings or EvaluateSettings(), load or LoadSettings()
    named = _named(models)
    reading = None
    if settings.tokens:
        text = open_documents(settings, texts)
        reading = Reading(text.digest, lambda loaded: sequences_for(loaded, text, settings))
    candidates = [_candidate(name, each, tokenizer, load) for name, each in named.items()]
    record = evaluate_models(candidates, reading, settings, load, fresh=fresh, out=out)
    if out is not None and launched().rank == 0:
        write_record(record, out, overwrite=overwrite)
    return record


def bench(
    models: Sequence[str | Path] | Mapping[str, str | Path | PreTrainedModel],
    settings: BenchSettings | None = None,
    *,
    load: LoadSettings | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> Bench:
    """Measure how fast models are in one engine, in turn, and what memory and energy they take.

    Args:
        models: Sources, or names for sources and models in memory; the first is the reference.
        settings: Which engine, how long prompts and answers, how many at once; see
            `BenchSettings`.
        load: Device and dtype of models that are loaded here.
        out: Where to write the record as JSON.

    Raises:
        DepthcutError: One of its kinds, see `depthcut.errors`.
    """
    from depthcut.benching.bench import bench_models
    from depthcut.benching.engines import ENGINES
    from depthcut.benching.inputs import refuse_unmeant

    settings, load = settings or BenchSettings(), load or LoadSettings()
    named = _named(models)
    if not named:
        raise SettingsError("bench needs at least one model")
    refuse_unmeant(settings)
    open_model = ENGINES[settings.engine]()
    sources = {name: each for name, each in named.items() if isinstance(each, str | Path)}
    with contextlib.ExitStack() as opened:
        engines = {
            name: opened.enter_context(
                contextlib.closing(open_model(source, settings, load, len(named)))
            )
            for name, source in named.items()
        }
        record = bench_models(engines, settings, load, sources=sources)
    if out is not None:
        write_record(record, out, overwrite=overwrite)
    return record


def report(folder: str | Path) -> Path:
    """Write report.html and its plots from the records in a folder; returns the page's path.

    Where benchmarks were run, tasks.csv, tasks.tex and a model card for each model lie beside it.

    Raises:
        RecordError: The folder holds none of the records, or a broken one.
    """
    from depthcut.reporting.page import write_report

    return write_report(Path(folder))


def _candidate(
    name: str,
    model: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    load: LoadSettings,
) -> Candidate:
    """A model to be judged, loaded only when it is asked for, if its files say what it is."""
    from depthcut.checkpoint.companions import companions_digest
    from depthcut.checkpoint.folder import model_facts, open_checkpoint
    from depthcut.evaluation.candidates import Candidate, tokenizer_digest
    from depthcut.model.sources import locate

    if isinstance(model, str | Path):
        with contextlib.suppress(ArchitectureError):  # cannot be cut, and yet be measured
            checkpoint = open_checkpoint(locate(model, load))
            return Candidate(
                name,
                model_facts(checkpoint, source=str(model)),
                lambda: load_source(model, tokenizer, load),
                folder=checkpoint.folder,
                reads=companions_digest(checkpoint.folder, checkpoint.config),
            )
    here = load_source(model, tokenizer, load)
    return Candidate(name, here.facts, lambda: here, reads=tokenizer_digest(here.tokenizer))


def _named(
    models: Sequence[str | Path] | Mapping[str, str | Path | PreTrainedModel],
) -> Mapping[str, str | Path | PreTrainedModel]:
    named = models if isinstance(models, Mapping) else {str(source): source for source in models}
    if len(named) < len(models):
        raise SettingsError("a model is named twice: name each once")
    return named

"""From a model and a text to a plan: survey, search, plan."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from depthcut.api.cutting import refuse_impossible
from depthcut.api.inputs import facts, load_source, open_documents, sequences_for
from depthcut.errors import ArchitectureError, SettingsError
from depthcut.records import ModelFacts, Plan, Search, Survey, read_choice, write_record
from depthcut.settings import LoadSettings, PlanSettings, SearchSettings, SurveySettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def survey(
    model: str | Path | PreTrainedModel,
    settings: SurveySettings | None = None,
    *,
    texts: Sequence[str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    load: LoadSettings | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> Survey:
    """Measure how redundant every block of layers is, in one pass over a text.

    In a script that `accelerate launch` started in several processes, all of them call this, each
    runs its part, and all get the record, which the first writes.

    Args:
        model: A source (smollm2, a folder, a hub id, a .gguf file), or a causal language model
            in memory, which is left as it is.
        settings: Which text, how many tokens; see `SurveySettings`.
        texts: Documents in memory, instead of `settings.text`.
        tokenizer: For a model in memory.
        load: Device and dtype of a model that is loaded here.
        out: Where to write the record as JSON.

    Raises:
        DepthcutError: One of its kinds, see `depthcut.errors`.
    """
    from depthcut.model.ranks import all_ranks
    from depthcut.surveying.survey import survey_model

    settings, load = settings or SurveySettings(), load or LoadSettings()
    if settings.stream:
        record = _survey_streamed(model, settings, texts, load)
        if out is not None:
            write_record(record, out, overwrite=overwrite)
        return record
    if settings.memory is not None:
        raise SettingsError("--memory is a limit of streamed surveys: add --stream, or leave it")
    ranks = all_ranks()
    text = open_documents(settings, texts)
    loaded = load_source(model, tokenizer, load)
    sequences = sequences_for(loaded, text, settings)
    record = survey_model(loaded, sequences, settings, load)
    if out is not None and ranks.rank == 0:
        write_record(record, out, overwrite=overwrite)
    return record


def search(
    model: str | Path | PreTrainedModel,
    settings: SearchSettings | None = None,
    *,
    texts: Sequence[str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    load: LoadSettings | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> Search:
    """Choose layers with the model in the loop: candidates are run on a text and compared.

    With `out`, what was measured is written beside it on the way (`<out>.journal`): the same
    call goes on where a killed one stopped. Several processes share the work as in `survey`.

    Args:
        model: A source, or a causal language model in memory, which is left as it is.
        settings: The method, how many layers, which text; see `SearchSettings`.
        texts: Documents in memory, instead of `settings.text`.
        tokenizer: For a model in memory.
        load: Device and dtype of a model that is loaded here.
        out: Where to write the record as JSON.

    Raises:
        DepthcutError: One of its kinds, see `depthcut.errors`.
    """
    from depthcut.files import refuse_existing
    from depthcut.model.ranks import all_ranks
    from depthcut.searching.search import search_model

    settings, load = settings or SearchSettings(), load or LoadSettings()
    ranks = all_ranks()
    journal = None if out is None else Path(f"{out}.journal")
    if out is not None and not overwrite:  # known before, not after hours
        refuse_existing(out)
    text = open_documents(settings, texts)
    loaded = load_source(model, tokenizer, load)
    sequences = sequences_for(loaded, text, settings)
    record = search_model(loaded, sequences, settings, load, journal=journal)
    if out is not None and ranks.rank == 0:
        write_record(record, out, overwrite=overwrite)
    if journal is not None and ranks.rank == 0:
        journal.unlink(missing_ok=True)
    return record


def plan(
    source: Survey | Search | ModelFacts | str | Path,
    settings: PlanSettings | None = None,
    *,
    mergekit: str | Path | None = None,
    load: LoadSettings | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> Plan:
    """Choose the layers that make up the new model.

    Args:
        source: A survey, a search, or the file of one; or a model's source or facts, with
            `settings.remove` or `mergekit`.
        settings: The budget or the layers; see `PlanSettings`.
        mergekit: A mergekit YAML file whose passthrough slices are the plan.
        load: Revision of a hub model.
        out: Where to write the record as JSON.

    Raises:
        DepthcutError: One of its kinds, see `depthcut.errors`.
    """
    from depthcut.mergekit import read_mergekit
    from depthcut.planning import (
        plan_by_hand,
        plan_by_mergekit,
        plan_from_search,
        plan_from_survey,
    )

    settings = settings or PlanSettings()
    if isinstance(source, str | Path) and Path(source).suffix == ".json":
        source = read_choice(Path(source))
    if mergekit is not None:
        recipe = read_mergekit(Path(mergekit))
        model = (
            source.model if isinstance(source, Survey | Search) else _facts_to_plan(source, load)
        )
        record = plan_by_mergekit(model, recipe, settings)
    elif isinstance(source, Search):
        record = plan_from_search(source, settings)
    elif isinstance(source, Survey):
        record = plan_from_survey(source, settings)
    else:
        record = plan_by_hand(_facts_to_plan(source, load), settings)
    if isinstance(source, str | Path):
        refuse_impossible(source, record, load)
    if out is not None:
        write_record(record, out, overwrite=overwrite)
    return record


def _survey_streamed(
    model: str | Path | PreTrainedModel,
    settings: SurveySettings,
    texts: Sequence[str] | None,
    load: LoadSettings,
) -> Survey:
    from depthcut.model.streaming import open_streamed
    from depthcut.surveying.streamed import survey_streamed

    if not isinstance(model, str | Path):
        raise SettingsError("a model in memory is not streamed: give its folder, or no stream")
    if settings.confidence is not None:
        raise SettingsError(
            "--stream takes every sequence through a layer before the next layer is there, so that "
            "nothing is saved by --confidence: leave it out, and lower --tokens"
        )
    text = open_documents(settings, texts)
    streamed = open_streamed(model, load)
    sequences = sequences_for(streamed.loaded, text, settings)
    return survey_streamed(streamed, sequences, settings, load)


def _facts_to_plan(source: ModelFacts | str | Path, load: LoadSettings | None) -> ModelFacts:
    """What a plan by hand must know; a GGUF file is not dequantised for it."""
    from depthcut.gguf.model import gguf_facts
    from depthcut.model.sources import EMBEDDED, gguf_file

    if isinstance(source, ModelFacts):
        return source
    file = None if source == EMBEDDED else gguf_file(source)
    if file is not None:
        with contextlib.suppress(ArchitectureError):  # perhaps transformers knows it
            return gguf_facts(file, source=str(source))
    return facts(source, load=load)

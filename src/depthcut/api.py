"""The Python functions: each resolves its sources, runs one stage, and writes where it is told.

The command line and the pipeline call these same functions.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from depthcut.errors import ArchitectureError, SettingsError, SourceError, nearest
from depthcut.launched import launched
from depthcut.records import (
    Bench,
    Evaluation,
    HealRecord,
    Inspection,
    ModelFacts,
    Origin,
    OwnText,
    Plan,
    RepairRecord,
    Search,
    SliceRecord,
    Survey,
    Verification,
    inputs_digest,
    read_choice,
    read_record,
    write_record,
)
from depthcut.settings import (
    BenchSettings,
    EvaluateSettings,
    HealSettings,
    LoadSettings,
    OwnTextSettings,
    PlanSettings,
    RepairSettings,
    SearchSettings,
    SurveySettings,
    TextSettings,
)
from depthcut.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from depthcut.evaluation.candidates import Candidate
    from depthcut.healing.losses.teachers import Untouched
    from depthcut.model.loading import LoadedModel
    from depthcut.text.documents import Text
    from depthcut.text.sequences import Sequences

_log = logging.getLogger(__name__)


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
    text = _text(settings, texts)
    loaded = _loaded(model, tokenizer, load)
    sequences = _sequences(loaded, text, settings)
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
    text = _text(settings, texts)
    loaded = _loaded(model, tokenizer, load)
    sequences = _sequences(loaded, text, settings)
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
        _refuse_impossible(source, record, load)
    if out is not None:
        write_record(record, out, overwrite=overwrite)
    return record


def slice(
    model: str | Path,
    plan: Plan | str | Path,
    out: Path,
    *,
    shard_bytes: int | None = None,
    zero: bool = False,
    other_model: bool = False,
    link: bool = False,
    base: str | None = None,
    load: LoadSettings | None = None,
) -> SliceRecord:
    """Write the checkpoint, GGUF file or adapter that a plan describes, byte for byte.

    A model of a type that depthcut does not know is proved by building it; this imports torch.

    Args:
        model: A source: smollm2, a folder, a hub id, a .gguf file; or the folder of a PEFT adapter
            of the plan's model.
        plan: A plan or its file.
        out: The folder to be, or the .gguf file where the source is one; it must not exist.
        shard_bytes: At most so many bytes in a weight file; default: the parent's files.
        zero: Whether weights may become zero: where a plan takes attention or MLP alone, the last
            projection is written as zeros. The result is exact and loads anywhere; it is neither
            smaller nor faster for it.
        other_model: Whether the plan may come from another model of the same shape. A GGUF file
            may always be cut into another by such a plan.
        link: Share bytes with the parent instead of copying them, where the file system can. A
            file that becomes a hard link is one with the parent's: who writes into it changes both.
        base: For an adapter: its cut base, as PEFT shall find it.
        load: Revision of a hub model, and whether code that comes with the model may run.

    Raises:
        DepthcutError: One of its kinds, see `depthcut.errors`.
    """
    from depthcut.model.sources import gguf_file, locate
    from depthcut.slicing import slice_checkpoint
    from depthcut.slicing.adapter import is_adapter, slice_adapter

    load, out = load or LoadSettings(), Path(out)
    plan = plan if isinstance(plan, Plan) else read_record(Path(plan), Plan)
    given = {
        "shard-bytes": shard_bytes is not None,
        "zero": zero,
        "other-model": other_model,
        "link": link,
        "base": base is not None,
    }
    if is_adapter(Path(model)):
        _refuse_given(given, {"base"}, "a PEFT adapter")
        return slice_adapter(Path(model), plan, out, base=base)
    if out.suffix.lower() == ".gguf":
        file = gguf_file(model)
        if file is None:
            raise SettingsError(
                f"{out}: a GGUF file is cut from a GGUF file, and {model} is none; name a folder "
                "with --out, and convert the result"
            )
        _refuse_given(given, {"other-model"}, "a GGUF file")
        return _slice_gguf(file, plan, out)
    _refuse_given(given, {"shard-bytes", "zero", "other-model", "link"}, "a model")
    folder = locate(model, load)
    return slice_checkpoint(
        folder,
        plan,
        out,
        shard_bytes=shard_bytes,
        source=str(model),
        zero=zero,
        other_model=other_model or _is_of_gguf(plan, model),
        link=link,
        verify=_proof(folder, plan, load),
    )


def verify(
    folder: str | Path,
    *,
    against: str | Path | None = None,
    loading: bool = True,
    load: LoadSettings | None = None,
) -> Verification:
    """Prove that a sliced folder holds what its plan makes of its parent, byte for byte.

    Args:
        folder: A folder that `slice` wrote.
        against: The parent; default: the one that its record names.
        loading: Also prove that transformers builds the model from it, layer for layer as in the
            parent. Imports torch; reads no weights.
        load: Revision of a hub model, and whether code that comes with the model may run.

    Raises:
        CheckpointError: Something differs, and what.
        DepthcutError: One of its kinds, see `depthcut.errors`.
    """
    from depthcut.model.sources import locate
    from depthcut.slicing.adapter import is_adapter
    from depthcut.slicing.checkpoint import RECORD_FILE
    from depthcut.slicing.verify import verify_slice

    folder, load = Path(folder), load or LoadSettings()
    if folder.is_file() or is_adapter(folder):
        raise SettingsError(f"{folder} is no sliced checkpoint: only such a folder can be proved")
    record_of_slice = read_record(folder / RECORD_FILE, SliceRecord)
    plan = record_of_slice.plan
    source = record_of_slice.parent.source if against is None else against
    try:
        parent = locate(source, load)
    except SourceError as error:
        if against is not None:
            raise
        raise SourceError(f"{error}; name the model that was cut with --against") from error
    record = verify_slice(folder, parent)
    if loading:
        from depthcut.model.verification import check_build

        trusted = load.trust_remote_code
        check_build(folder, parent, plan.kept_layers, trust_remote_code=trusted)
        record = msgspec.structs.replace(record, loads=True)
    return record


def inspect(model: str | Path, *, load: LoadSettings | None = None) -> Inspection:
    """What depthcut sees in a model and what of it cannot be cut; reads no weights.

    Args:
        model: A source: smollm2, a folder, a hub id, a .gguf file.
        load: Revision of a hub model.

    Raises:
        DepthcutError: One of its kinds, see `depthcut.errors`.
    """
    from depthcut.model.sources import EMBEDDED, gguf_file, locate
    from depthcut.slicing import inspect_checkpoint, inspect_gguf

    file = None if model == EMBEDDED else gguf_file(model)
    if file is not None:
        return inspect_gguf(file, source=str(model))
    return inspect_checkpoint(locate(model, load or LoadSettings()), source=str(model))


def repair(
    model: str | Path,
    plan: Plan | str | Path,
    out: Path,
    settings: RepairSettings | None = None,
    *,
    texts: Sequence[str] | None = None,
    load: LoadSettings | None = None,
    force: bool = False,
) -> RepairRecord:
    """Cut a model by a plan and solve for weights that make up for the removed layers.

    Nothing is trained: output projections of the layers beside each removed block get the values,
    in closed form, with which the states behind the cut come nearest to the model's own.

    Args:
        model: A source: smollm2, a folder, a hub id, a .gguf file (the result is a folder).
        plan: A plan that removes whole layers, or its file.
        out: The folder to be; it must not exist.
        settings: The method, which text; see `RepairSettings`.
        texts: Documents in memory, instead of `settings.text`.
        load: Device and dtype in which the model runs.
        force: Also write a repair that does not help on text that was held out.

    Raises:
        DepthcutError: One of its kinds, see `depthcut.errors`.
    """
    from depthcut.files import refuse_existing
    from depthcut.model.sources import locate
    from depthcut.repairing.inputs import refuse_plan
    from depthcut.slicing import slice_checkpoint
    from depthcut.slicing.layout import check_plan

    settings, load, out = settings or RepairSettings(), load or LoadSettings(), Path(out)
    plan = plan if isinstance(plan, Plan) else read_record(Path(plan), Plan)
    refuse_existing(out)
    folder, other = locate(model, load), _is_of_gguf(plan, model)
    check_plan(plan, facts(model, load=load), str(model), other_model=other)
    refuse_plan(plan)
    _refuse_impossible(folder, plan, load)
    from depthcut.repairing.methods import find_method
    from depthcut.repairing.repair import repair_checkpoint

    find_method(settings.method)
    text = _text(settings, texts)
    loaded = _loaded(model, None, load)

    def cut(into: Path) -> None:
        slice_checkpoint(
            folder,
            plan,
            into,
            source=str(model),
            other_model=other,
            verify=_proof(folder, plan, load),
        )

    return repair_checkpoint(
        loaded,
        plan,
        lambda: _sequences(loaded, text, settings),
        settings,
        load=load,
        out=out,
        cut=cut,
        force=force,
    )


def heal(
    model: str | Path | PreTrainedModel,
    out: Path,
    settings: HealSettings | None = None,
    *,
    texts: Sequence[str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    load: LoadSettings | None = None,
    announce: Callable[[str], object] = lambda line: None,
) -> HealRecord:
    """Train a cut model and write it as a checkpoint of the same form.

    Killed, the same call goes on where it stopped.

    Args:
        model: A source, or a causal language model in memory (it is not changed).
        out: The folder to be; it must not exist.
        settings: What is trained, the losses, steps, rates, text; see `HealSettings`.
        texts: Documents in memory, instead of `settings.text`.
        tokenizer: For a model in memory.
        load: Device, dtype, 4-bit base.
        announce: Told in lines what will be trained, and about how long it takes.

    Raises:
        DepthcutError: One of its kinds, see `depthcut.errors`.
    """
    from depthcut.files import refuse_existing
    from depthcut.healing.heal import heal_checkpoint
    from depthcut.healing.inputs import as_loaded, as_needed, check
    from depthcut.healing.losses.table import loss_weights
    from depthcut.healing.training.checkpoints import training_folder

    settings, load = settings or HealSettings(), load or LoadSettings()
    check(settings)
    loss_weights(settings)
    if not training_folder(Path(out)).exists():
        refuse_existing(Path(out))
    text = _text(settings, texts)
    teacher = _teacher(model, settings, load)
    loaded = _loaded(model, tokenizer, as_loaded(settings, load))
    sequences = _sequences(loaded, text, as_needed(settings), answers_only=settings.answers_only)
    return heal_checkpoint(
        loaded, sequences, settings, load, Path(out), teacher=teacher, announce=announce
    )


def _teacher(
    model: str | Path | PreTrainedModel, settings: HealSettings, load: LoadSettings
) -> Untouched | None:
    """Found before the model is loaded: a misspelt name costs no wait."""
    from depthcut.healing.inputs import parent_of
    from depthcut.healing.losses.teachers import Untouched
    from depthcut.model.sources import locate

    if settings.teacher is None:
        return None
    source, revision, parent = settings.teacher, None, None
    if source == "parent":
        if not isinstance(model, str | Path):
            raise SettingsError("--teacher parent and a model in memory: name the teacher")
        parent = parent_of(locate(model, load))
        source, revision = parent.source, load.revision
    load = msgspec.structs.replace(load, load_in_4bit=False, revision=revision)
    try:
        found = facts(source, load=load)
    except SourceError as error:
        raise SourceError(f"--teacher: {error}{nearest(source, ('parent',))}") from error
    if parent is not None and found.digest != parent.digest:
        raise SettingsError(
            f"--teacher parent: {source} is not the model any more that was cut into {model}; name "
            "the teacher"
        )
    return Untouched(found, lambda: _loaded(source, None, load))


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
    named = models if isinstance(models, Mapping) else {str(source): source for source in models}
    if len(named) < len(models):
        raise SettingsError("a model is named twice: name each once")
    reading = None
    if settings.tokens:
        text = _text(settings, texts)
        reading = Reading(text.digest, lambda loaded: _sequences(loaded, text, settings))
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
    named = models if isinstance(models, Mapping) else {str(source): source for source in models}
    if len(named) < len(models):
        raise SettingsError("a model is named twice: name each once")
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


def generate(
    model: str | Path,
    prompt: str,
    *,
    new_tokens: int = 128,
    load: LoadSettings | None = None,
) -> Iterator[str]:
    """The greedy continuation of a prompt, piece by piece, through the chat template if any."""
    from depthcut.evaluation.generation import generate as stream
    from depthcut.model.loading import load as load_model

    return stream(load_model(model, load or LoadSettings()), prompt, new_tokens=new_tokens)


def generate_text(
    model: str | Path | PreTrainedModel,
    out: Path,
    settings: OwnTextSettings | None = None,
    *,
    prompts: Sequence[str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    load: LoadSettings | None = None,
) -> OwnText:
    """Let a model write the text that it is calibrated on, into a JSONL file.

    What is written is kept beside it on the way (`<out>.journal`): the same call goes on where a
    killed one stopped, and comes to the same file.

    Args:
        model: A source, or a causal language model in memory, which is left as it is.
        out: The .jsonl file to be; it must not exist.
        settings: How much, and how it is sampled; see `OwnTextSettings`.
        prompts: Prompts in memory, instead of `settings.prompts`.
        tokenizer: For a model in memory.
        load: Device and dtype of a model that is loaded here.

    Raises:
        DepthcutError: One of its kinds, see `depthcut.errors`.
    """
    from depthcut.files import refuse_existing
    from depthcut.generating import write_own_text

    settings, load = settings or OwnTextSettings(), load or LoadSettings()
    refuse_existing(Path(out))
    asked = None
    if prompts is not None or settings.prompts is not None:
        source = TextSettings(
            text=settings.prompts or (),
            text_config=settings.text_config,
            split=settings.split,
            columns=settings.columns,
        )
        asked = _text(source, prompts)
    loaded = _loaded(model, tokenizer, load)
    return write_own_text(loaded, asked, settings, load, Path(out))


def report(folder: str | Path) -> Path:
    """Write report.html and its plots from the records in a folder; returns the page's path.

    Where benchmarks were run, tasks.csv, tasks.tex and a model card for each model lie beside it.

    Raises:
        RecordError: The folder holds none of the records, or a broken one.
    """
    from depthcut.reporting.page import write_report

    return write_report(Path(folder))


def facts(model: str | Path, *, load: LoadSettings | None = None) -> ModelFacts:
    """What a checkpoint says of itself: layers, parameters, digest. Reads no weights."""
    from depthcut.checkpoint.folder import model_facts, open_checkpoint
    from depthcut.model.sources import locate

    return model_facts(open_checkpoint(locate(model, load or LoadSettings())), source=str(model))


def _refuse_given(given: Mapping[str, bool], known: set[str], what: str) -> None:
    for name, is_given in given.items():
        if is_given and name not in known:
            raise SettingsError(f"--{name} means nothing for {what}: leave it out")


def _proof(folder: Path, plan: Plan, load: LoadSettings) -> Callable[[Path], None]:
    """Proves a cut of a model type that the table lacks by building it; imports torch."""

    def prove(made: Path) -> None:
        from depthcut.checkpoint.folder import open_checkpoint
        from depthcut.model.verification import check_build

        kept = plan.kept_layers
        check_build(made, folder, kept, trust_remote_code=load.trust_remote_code)
        for assumed in open_checkpoint(folder).architecture.assumed:
            _log.warning("%s; transformers builds every layer of the result as it was", assumed)

    return prove


def _slice_gguf(file: Path, plan: Plan, out: Path) -> SliceRecord:
    """A GGUF file has no room beside it: the plan goes into its metadata."""
    from depthcut.gguf.model import OWN_PREFIX, gguf_facts
    from depthcut.slicing.gguf import slice_gguf
    from depthcut.slicing.layout import check_plan
    from depthcut.slicing.zeroing import refuse_zeroed

    refuse_zeroed(plan, "a GGUF file")
    started = time.monotonic()
    parent = gguf_facts(file, source=str(file))
    check_plan(plan, parent, str(file), other_model=True)
    added = {
        "version": __version__,
        "change": f"{plan.model.layers} layers {plan.change}",
        "plan": msgspec.json.encode(plan).decode(),
    }
    own = {f"{OWN_PREFIX}{key}": text for key, text in added.items()}
    slice_gguf(file, plan.kept_layers, out, added=own)
    inputs = inputs_digest("slice gguf", plan.origin.inputs, *plan.slices)
    result = gguf_facts(out, source=str(out))
    return SliceRecord(
        origin=Origin.since(started, inputs=inputs), plan=plan, parent=parent, result=result
    )


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


def _refuse_impossible(source: str | Path, plan: Plan, load: LoadSettings | None) -> None:
    """Raise ArchitectureError where the config of a plan's model cannot say it."""
    from depthcut.checkpoint.folder import open_checkpoint
    from depthcut.model.sources import EMBEDDED, gguf_file, locate
    from depthcut.slicing.layout import refuse_computed

    if source == EMBEDDED or gguf_file(source) is None:
        checkpoint = open_checkpoint(locate(source, load or LoadSettings()))
        refuse_computed(checkpoint)
        checkpoint.cut_config(plan.kept_layers)


def _is_of_gguf(plan: Plan, source: str | Path) -> bool:
    """Whether a plan was made for the very GGUF file whose dequantised form is cut."""
    from depthcut.gguf.model import gguf_facts
    from depthcut.model.sources import gguf_file

    file = gguf_file(source)
    try:
        return file is not None and gguf_facts(file, source="").digest == plan.model.digest
    except ArchitectureError:
        return False


def _loaded(
    model: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    settings: LoadSettings,
) -> LoadedModel:
    from depthcut.model.loading import from_memory, load

    if isinstance(model, str | Path):
        return load(model, settings)
    return from_memory(model, tokenizer)


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
                lambda: _loaded(model, tokenizer, load),
                folder=checkpoint.folder,
                reads=companions_digest(checkpoint.folder, checkpoint.config),
            )
    here = _loaded(model, tokenizer, load)
    return Candidate(name, here.facts, lambda: here, reads=tokenizer_digest(here.tokenizer))


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
    text = _text(settings, texts)
    streamed = open_streamed(model, load)
    sequences = _sequences(streamed.loaded, text, settings)
    return survey_streamed(streamed, sequences, settings, load)


def _text(settings: TextSettings, documents: Sequence[str] | None) -> Text:
    """Opened before a model is loaded: a misspelt name costs no wait."""
    from depthcut.text.documents import open_text
    from depthcut.text.names import STANDARD_INPUT, named_texts

    names = () if documents is not None else named_texts(settings.text)
    if launched().count > 1 and any(each.name == STANDARD_INPUT for each in names):
        raise SettingsError(
            "several processes read the text each for itself: save standard input to a file"
        )
    return open_text(settings, documents)


def _sequences(
    loaded: LoadedModel, text: Text, settings: TextSettings, *, answers_only: bool = False
) -> Sequences:
    from depthcut.text.sequences import read_sequences

    if loaded.tokenizer is None:
        raise SettingsError(
            "a model in memory needs its tokenizer: pass tokenizer="
            if loaded.folder is None
            else f"{loaded.folder} has no tokenizer: copy the model's tokenizer files into it"
        )
    return read_sequences(text, settings, loaded.tokenizer, answers_only=answers_only)

"""The commands. Each imports its stage only when it is called."""

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import tyro
from tyro.conf import Positional, arg

from depthcut.errors import DepthcutError, SettingsError
from depthcut.launched import launched
from depthcut.options import options_registry, with_preset, with_texts_joined
from depthcut.records import Plan
from depthcut.settings import (
    BenchSettings,
    EvaluateSettings,
    HealMethod,
    HealSettings,
    LoadSettings,
    OwnTextSettings,
    PlanSettings,
    Recipe,
    RepairSettings,
    SearchSettings,
    SurveySettings,
    SweepSettings,
    Texts,
    size_bytes,
)

Model = Annotated[str, Positional, arg(metavar="MODEL")]
Out = Annotated[Path, arg(help="Where the result goes; it must not exist.")]


@dataclass(frozen=True)
class Common:
    """What most commands take."""

    token: str | None = None
    """Access token of the model hub; HF_TOKEN and `hf auth login` keep it out of sight."""
    json: bool = False
    """Print the record as JSON instead of a table."""


COMMON = Common()


def survey(
    model: Model,
    *,
    out: Out,
    csv: Path | None = None,
    settings: SurveySettings = SurveySettings(),
    load: LoadSettings = LoadSettings(),
    common: Common = COMMON,
) -> None:
    """Measure how redundant each block of layers is, all sizes in one pass over a text.

    Args:
        model: smollm2 (embedded), a local folder, a hub id, or a .gguf file.
        csv: Also write block_start,block_end,average_distance, as the older tools count; with
            the criterion pruneme, their numbers too.
    """
    from depthcut import api
    from depthcut.files import write_file
    from depthcut.surveying.criteria import chosen

    _use_token(common.token)
    _refuse_existing(out, csv)
    by_csv = next(
        (name for name in ("pruneme", "angular") if name in chosen(settings.criteria)), ""
    )
    if csv is not None and not by_csv:
        raise SettingsError("--csv holds angular distances: add angular or pruneme to --criteria")
    record = api.survey(model, settings, load=load, out=out)
    if csv is not None and launched().rank == 0:
        from depthcut.reporting.exports import survey_csv

        write_file(csv, survey_csv(record.find(by_csv, "last")).encode())
    if not _print_json(record, common):
        from depthcut.reporting.terminal import show, survey_table

        show(survey_table(record))
        show(f"next: depthcut plan {out} --drop 25% --out plan.json")


def search(
    model: Model,
    *,
    out: Out,
    settings: SearchSettings = SearchSettings(),
    load: LoadSettings = LoadSettings(),
    common: Common = COMMON,
) -> None:
    """Choose layers with the model in the loop: candidates are run on a text and compared.

    The same command goes on where a killed one stopped.

    Args:
        model: smollm2 (embedded), a local folder, a hub id, or a .gguf file.
    """
    from depthcut import api

    _use_token(common.token)
    _refuse_existing(out)
    record = api.search(model, settings, load=load, out=out)
    if not _print_json(record, common):
        from depthcut.reporting.terminal import search_table, show

        show(search_table(record))
        if record.frontier:
            most = record.count(record.frontier[-1])
            show(f"next: depthcut plan {out} --drop {most} --out plan.json")


def sweep(
    model: Model,
    *,
    out: Annotated[Path, arg(help="The folder; the same command goes on where it stopped.")],
    settings: SweepSettings = SweepSettings(),
    overwrite: bool = False,
    load: LoadSettings = LoadSettings(),
    common: Common = COMMON,
) -> None:
    """Compare ways of choosing layers: every way at every depth, judged on other texts.

    Args:
        model: smollm2 (embedded), a local folder, a hub id, or a .gguf file.
        overwrite: Replace results in the folder that were made from other inputs.
    """
    from depthcut.sweeping import sweep as compare

    _use_token(common.token)
    record = compare(
        model, settings, load=load, out=out, overwrite=overwrite,
        announce=lambda line: sys.stderr.write(f"{line}\n"),
    )  # fmt: skip
    if not _print_json(record, common):
        from depthcut.reporting.terminal import show, sweep_tables

        show(sweep_tables(record))
        show(f"next: depthcut report {out}")


def plan(
    source: Annotated[str, Positional, arg(metavar="SURVEY|SEARCH|MODEL")],
    *,
    out: Out,
    mergekit: Path | None = None,
    from_mergekit: Path | None = None,
    settings: PlanSettings = PlanSettings(),
    revision: str | None = None,
    allow_pickle: bool = False,
    common: Common = COMMON,
) -> None:
    """Choose the layers to remove: from a survey and a budget, by hand, or by a recipe.

    Args:
        source: A survey or a search (survey.json, search.json); or a model, with --remove or
            --from-mergekit.
        mergekit: Also write the same cut as a mergekit passthrough recipe (YAML).
        from_mergekit: Take the layers of a mergekit passthrough recipe, in its order, with repeats.
        revision: Branch, tag or commit of a hub model.
        allow_pickle: Read .bin weights too, by torch's weights-only loader, into the cache.
    """
    from depthcut import api
    from depthcut.files import refuse_existing, write_file

    _use_token(common.token)
    for path in filter(None, (out, mergekit)):
        refuse_existing(path)
    record = api.plan(
        source,
        settings,
        mergekit=from_mergekit,
        load=LoadSettings(revision=revision, allow_pickle=allow_pickle),
        out=out,
    )
    if mergekit is not None:
        from depthcut.reporting.exports import mergekit_yaml

        write_file(mergekit, mergekit_yaml(record, model=_as_mergekit_loads(record)).encode())
    if not _print_json(record, common):
        from depthcut.reporting.terminal import plan_table, show

        show(plan_table(record))
        zero = " --zero" if record.zeroed else ""
        show(f"next: depthcut slice {record.model.source} {out}{zero} --out pruned")


def inspect(
    model: Model,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    common: Common = COMMON,
) -> None:
    """Show what depthcut sees in a model: its layers, what its config says of them, what must stay.

    Args:
        model: smollm2, a local folder, a hub id, or a .gguf file.
        revision: Branch, tag or commit of a hub model.
        allow_pickle: Read .bin weights too, by torch's weights-only loader, into the cache.
    """
    from depthcut import api

    _use_token(common.token)
    record = api.inspect(model, load=LoadSettings(revision=revision, allow_pickle=allow_pickle))
    if not _print_json(record, common):
        from depthcut.reporting.terminal import inspection_tables, show

        show(inspection_tables(record))


def slice_(
    model: Model,
    plan: Annotated[Path, Positional, arg(metavar="PLAN")],
    *,
    out: Out,
    shard_bytes: str | None = None,
    zero: bool = False,
    other_model: bool = False,
    link: bool = False,
    base: str | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    common: Common = COMMON,
) -> None:
    """Write the smaller checkpoint that a plan describes; it loads like the old one.

    A .gguf file is cut into a .gguf file if --out ends so, else into a dequantised checkpoint.

    Args:
        model: The model that the plan is for, or a PEFT adapter of it.
        plan: The plan (plan.json).
        shard_bytes: Largest weight file, such as 5GB; default: the files of the model.
        zero: Where the plan takes attention or MLP alone, write their last projections as zeros:
            the result is exact and loads anywhere, and is neither smaller nor faster for it.
        other_model: The plan may come from another model of the same shape, such as the one that
            this is a quantised copy of.
        link: Share bytes with the model instead of copying them, where the file system can. Who
            writes into a file that became a hard link changes the model too.
        base: For an adapter: the folder or hub id of the cut model that it shall be loaded on.
        revision: Branch, tag or commit of a hub model.
        allow_pickle: Read .bin weights too, by torch's weights-only loader, into the cache.
        trust_remote_code: Allow Python code that comes with the model to run, where it must be
            built to prove the cut.
    """
    from depthcut import api

    _use_token(common.token)
    load = LoadSettings(
        revision=revision, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
    )
    limit = None if shard_bytes is None else size_bytes(shard_bytes, "shard-bytes")
    record = api.slice(
        model,
        plan,
        out,
        shard_bytes=limit,
        zero=zero,
        other_model=other_model,
        link=link,
        base=base,
        load=load,
    )
    if not _print_json(record, common):
        from depthcut.reporting.terminal import show, slice_line

        show(slice_line(record))
        if (out / "config.json").is_file():
            show(f"next: depthcut evaluate {model} {out} --out evaluation.json")


def verify(
    folder: Annotated[Path, Positional, arg(metavar="DIR")],
    *,
    against: str | None = None,
    no_load: bool = False,
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    common: Common = COMMON,
) -> None:
    """Prove that a sliced folder holds what its plan makes of the model, byte for byte.

    Args:
        folder: A checkpoint folder that depthcut slice wrote (no .gguf file, no adapter).
        against: The model that was cut; default: the one that its record names.
        no_load: Do not build the model with transformers (no weights are read in any case).
        revision: Branch, tag or commit of a hub model.
        allow_pickle: Read .bin weights too, by torch's weights-only loader, into the cache.
        trust_remote_code: Allow Python code that comes with the model to run.
    """
    from depthcut import api

    _use_token(common.token)
    load = LoadSettings(
        revision=revision, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
    )
    record = api.verify(folder, against=against, loading=not no_load, load=load)
    if not _print_json(record, common):
        from depthcut.reporting.terminal import show, verification_lines

        show(verification_lines(record))


def repair(
    model: Model,
    plan: Annotated[Path, Positional, arg(metavar="PLAN")],
    *,
    out: Out,
    force: bool = False,
    settings: RepairSettings = RepairSettings(),
    load: LoadSettings = LoadSettings(),
    common: Common = COMMON,
) -> None:
    """Write the smaller checkpoint with weights that make up for the cut, in closed form.

    Nothing is trained; it takes about as long as a survey, and loads like the old one.

    Args:
        model: The model that the plan is for.
        plan: The plan (plan.json).
        force: Write the repair even if it does not help on text that was held out.
    """
    from depthcut import api

    _use_token(common.token)
    record = api.repair(model, plan, out, settings, load=load, force=force)
    if not _print_json(record, common):
        from depthcut.reporting.terminal import repair_lines, show

        show(repair_lines(record))
        show(f"next: depthcut heal {out} --out healed")


def heal(
    model: Model,
    *,
    out: Out,
    preset: str | None = None,
    settings: HealSettings = HealSettings(),
    load: LoadSettings = LoadSettings(),
    common: Common = COMMON,
) -> None:
    """Train a cut model on a text; what it learned is merged into its weights.

    Killed, the same command goes on where it stopped.

    Args:
        model: The checkpoint to train, usually a sliced or repaired one.
        preset: Settings that belong together, where no option says otherwise: quick, best, gromov
            (as in arXiv:2403.17887; on a GPU) or domain, see docs/heal.md.
    """
    from depthcut import api

    del preset  # its options stand among the others already

    _use_token(common.token)
    record = api.heal(
        model, out, settings, load=load, announce=lambda line: sys.stderr.write(f"{line}\n")
    )
    if not _print_json(record, common):
        from depthcut.reporting.terminal import heal_line, show

        show(heal_line(record))


def evaluate(
    models: Annotated[tuple[str, ...], Positional, arg(metavar="MODEL [MODEL ...]")],
    *,
    out: Out,
    fresh: bool = False,
    settings: EvaluateSettings = EvaluateSettings(),
    load: LoadSettings = LoadSettings(),
    common: Common = COMMON,
) -> None:
    """Judge models on the same tokens, prompts and benchmark questions, paired with the first.

    What was measured before is kept in the cache; the same command goes on where a killed one
    stopped.

    Args:
        models: One or more models; the first is the reference.
        fresh: Measure anew what was measured before.
    """
    from depthcut import api

    _use_token(common.token)
    _refuse_existing(out)
    record = api.evaluate(models, settings, load=load, out=out, fresh=fresh)
    if not _print_json(record, common):
        from depthcut.reporting.terminal import evaluation_tables, show

        show(evaluation_tables(record))


def bench(
    models: Annotated[tuple[str, ...], Positional, arg(metavar="MODEL [MODEL ...]")],
    *,
    out: Out,
    settings: BenchSettings = BenchSettings(),
    load: LoadSettings = LoadSettings(),
    common: Common = COMMON,
) -> None:
    """Measure how fast models are, in turn, beside what they could be; what memory they take.

    Args:
        models: One or more models, for llama.cpp .gguf files; the first is the reference.
    """
    from depthcut import api

    _use_token(common.token)
    _refuse_existing(out)
    record = api.bench(models, settings, load=load, out=out)
    if not _print_json(record, common):
        from depthcut.reporting.terminal import bench_table, show

        show(bench_table(record))


def generate(
    model: Model,
    prompt: Annotated[str, Positional, arg(metavar="PROMPT")],
    *,
    new_tokens: int = 128,
    load: LoadSettings = LoadSettings(),
    token: str | None = None,
) -> None:
    """Stream a model's greedy answer to a prompt, for a quick look.

    Args:
        model: Any model.
        prompt: The prompt; the model's chat template is applied where there is one.
        new_tokens: Tokens to generate, at most.
        token: Access token of the model hub.
    """
    from depthcut import api

    _use_token(token)
    for piece in api.generate(model, prompt, new_tokens=new_tokens, load=load):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def text(
    *,
    from_model: Annotated[str, arg(metavar="MODEL")],
    out: Annotated[Path, arg(help="The .jsonl file to be; the same command goes on.")],
    settings: OwnTextSettings = OwnTextSettings(),
    load: LoadSettings = LoadSettings(),
    common: Common = COMMON,
) -> None:
    """Let a model write the text that it is calibrated on: from nothing, or in answer to prompts.

    The same command goes on where a killed one stopped, and comes to the same file.

    Args:
        from_model: smollm2 (embedded), a local folder, a hub id, or a .gguf file.
    """
    from depthcut import api

    _use_token(common.token)
    record = api.generate_text(from_model, out, settings, load=load)
    if not _print_json(record, common):
        from depthcut.reporting.terminal import own_text_line, show

        show(own_text_line(record))
        show(f"next: depthcut survey {from_model} --text {out} --out survey.json")


def report(folder: Annotated[Path, Positional, arg(metavar="DIR")]) -> None:
    """Write report.html and its plots from the records in a folder.

    Args:
        folder: The folder of a run or of an evaluation: survey.json, plan.json, evaluation.json,
            bench.json, as far as they are.
    """
    from depthcut import api

    sys.stdout.write(f"{api.report(folder)}\n")


def run(
    source: Annotated[str, Positional, arg(metavar="RECIPE|MODEL")],
    *,
    out: Annotated[Path, arg(help="The run's folder; the same command goes on where it stopped.")],
    text: Texts | None = None,
    eval_text: Texts | None = None,
    drop: str | None = None,
    repair: str | None = None,
    heal: HealMethod | None = None,
    heal_steps: int = 0,
    tasks: tuple[str, ...] = (),
    data: str | None = None,
    quick: bool = False,
    best: bool = False,
    overwrite: bool = False,
    load: LoadSettings = LoadSettings(),
    token: str | None = None,
) -> None:
    """Do all stages in order, in one folder.

    The layers are chosen by a search with the model in the loop; --quick takes a survey's word,
    --best searches longer.

    Args:
        source: A recipe (.yaml, see `depthcut recipe`), or a model for the common case.
        text: Calibration text, or several with weights (wiki.txt:2 chat.jsonl:1); seven of eight
            of its sequences are used. Default: builtin.
        eval_text: Text to judge on, or several; default: the other sequences of the calibration
            text.
        drop: How many layers to remove: 7, or a share such as 25% (the default).
        repair: Make up for the cut in closed form: refit, or another method of depthcut repair.
            Layer 0 then stays. Default: no, as not every architecture can be repaired.
        heal: Train what is left, with the model before the cut as teacher: lora, qlora, full or
            partial. Default: no.
        heal_steps: Training steps; given alone it means --heal lora.
        tasks: Benchmarks to judge by, as depthcut evaluate takes them: quick, or arc_easy,mmlu:5.
        data: A folder with the benchmarks' files, see depthcut evaluate.
        quick: Choose the layers by one pass over the text, by block influence.
        best: Choose them by a wider search on four times the text.
        overwrite: Replace results in the folder that were made from other inputs.
        token: Access token of the model hub.
    """
    from depthcut.recipes import common_recipe, read_recipe

    _use_token(token)
    if Path(source).suffix in (".yaml", ".yml"):
        given = [name for name, value in (("text", text), ("eval-text", eval_text), ("drop", drop),
                 ("repair", repair), ("heal", heal), ("heal-steps", heal_steps), ("tasks", tasks),
                 ("data", data), ("quick", quick), ("best", best),
                 ("load options", load != LoadSettings())) if value]  # fmt: skip
        if given:
            raise SettingsError(f"{given[0]} and a recipe: write it into {source} instead")
        recipe = read_recipe(Path(source))
    else:
        if quick and best:
            raise SettingsError("--quick and --best: choose one of them")
        recipe = common_recipe(
            source, text=text, eval_text=eval_text, drop=drop, repair=repair, heal=heal,
            heal_steps=heal_steps, tasks=tasks, data=data, load=load,
            effort="quick" if quick else "best" if best else "usual",
        )  # fmt: skip
    _run(recipe, out, overwrite=overwrite)


def demo(
    *,
    out: Path = Path("depthcut-demo"),
    heal: bool = False,
    quick: bool = False,
    overwrite: bool = False,
) -> None:
    """Run all stages on the embedded model and text.

    Args:
        out: The run's folder; the same command goes on where it stopped.
        heal: Also train what is left, after the cut is repaired.
        quick: Fewer tokens and rounds: a look in a few minutes, with larger errors.
        overwrite: Replace results in the folder that were made from other inputs.
    """
    from depthcut.recipes import demo_recipe

    _run(demo_recipe(quick=quick, heal=heal), out, overwrite=overwrite)


def recipe() -> None:
    """Print a commented recipe for depthcut run."""
    from depthcut.recipes import commented_recipe

    sys.stdout.write(commented_recipe())


COMMANDS: dict[str, Callable[..., None]] = {
    "survey": survey,
    "search": search,
    "sweep": sweep,
    "inspect": inspect,
    "plan": plan,
    "slice": slice_,
    "verify": verify,
    "repair": repair,
    "heal": heal,
    "evaluate": evaluate,
    "bench": bench,
    "generate": generate,
    "text": text,
    "report": report,
    "run": run,
    "demo": demo,
    "recipe": recipe,
}

IN_PROCESSES = ("survey", "search", "heal", "evaluate")
"""The commands that several processes can share."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console script: one line and exit 2 for an error, exit 130 for Ctrl-C."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    # It tells of faster kernels that it could fetch, on import and on every CPU.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    given = list(sys.argv[1:] if arguments is None else arguments)
    first = launched().rank == 0
    if not first:  # all come to the same, and one says it
        logging.getLogger().setLevel(logging.ERROR)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
    try:
        _refuse_processes(given)
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="depthcut",
            description="Make a pretrained language model shallower.",
            args=with_preset(with_texts_joined(given)),
            console_outputs=first,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            registry=options_registry(),
        )
    except DepthcutError as error:
        _let_first_speak()
        sys.stderr.write(f"depthcut: {' '.join(str(error).split())}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("\ndepthcut: stopped\n" if first else "")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(0)


def _refuse_processes(arguments: Sequence[str]) -> None:
    """Refuse a command that several processes would each do whole, into the same place."""
    command = arguments[0] if arguments else ""
    if launched().count > 1 and command in COMMANDS and command not in IN_PROCESSES:
        raise SettingsError(
            f"{command} runs in one process, and {launched().count} were started: run it without "
            "accelerate launch; --device map spreads a model over several GPUs"
        )


def _let_first_speak() -> None:
    """Wait where the first process may have the same to say; its launcher then ends this one."""
    if rank := launched().rank:
        time.sleep(2 + 0.1 * min(rank, 50))


def _refuse_existing(*paths: Path | None) -> None:
    """Refuse results that are there already or cannot be, in the process that would write them."""
    from depthcut.files import refuse_existing, refuse_unwritable

    if launched().rank == 0:
        for path in filter(None, paths):
            refuse_existing(path)
            refuse_unwritable(path)


def _run(recipe: Recipe, out: Path, *, overwrite: bool) -> None:
    from depthcut.pipeline import run as run_recipe
    from depthcut.reporting.terminal import run_lines, show

    done = run_recipe(
        recipe, out, overwrite=overwrite, announce=lambda line: sys.stderr.write(f"{line}\n")
    )
    show(f"{run_lines(done.folder)}\nmodel: {done.model}\nreport: {done.report}")


def _print_json(record: object, common: Common) -> bool:
    if common.json:
        import msgspec

        sys.stdout.write(msgspec.json.encode(record).decode() + "\n")
    return common.json


def _as_mergekit_loads(plan: Plan) -> str:
    """The plan's model; those that only depthcut unpacks by the folder they are unpacked in."""
    from depthcut.model.sources import EMBEDDED, locate

    source = plan.model.source
    unpacked = source == EMBEDDED or source.endswith(".gguf")
    return str(locate(source, LoadSettings())) if unpacked else source


def _use_token(token: str | None) -> None:
    if token is not None:
        os.environ["HF_TOKEN"] = token

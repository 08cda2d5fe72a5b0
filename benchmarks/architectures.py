"""Which cuts are right: every model type, three cuts each, against deletion in memory.

    python -m benchmarks.architectures [NAME ...] [--quick] [--no-mergekit] [--jobs 2]

A NAME is a model type, a variant, "recipe TYPE" or "older TYPE". A cut is exact (plain transformers
loads it with no missing, unexpected or misshapen key, and its logits are bitwise those of the whole
model whose removed layers pass their input on, at once and token by token with a cache), refused,
wrong or a crash; mergekit's beside it, where it is installed. Prints counts and all that is not
exact; a run of all names keeps its result in benchmarks/results/architectures.json.
"""

import argparse
import contextlib
import importlib.util
import json
import logging
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from benchmarks import results
from tests.every_type import (
    LAYERS,
    VARIANTS,
    auto_class,
    build,
    from_config,
    model_types,
    tiny_config,
)
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from depthcut.checkpoint.folder import model_facts, open_checkpoint
from depthcut.errors import ArchitectureError, DepthcutError
from depthcut.planning import plan_by_hand
from depthcut.settings import PlanSettings
from depthcut.slicing import slice_checkpoint

RECIPES = Path(__file__).parents[2] / "shared" / "architectures" / "recipes.json"
CUTS: Mapping[str, tuple[int, ...]] = {"first": (0,), "middle": (2, 3), "scattered": (1, 4)}
""""first" is the first single layer that may go."""
QUICK = ("llama", "gpt2", "gemma3_text", "qwen3_moe", "deepseek_v3", "jamba", "mamba", "bloom")
KINDS = {"recipe": "recipes", "older": "older files"}
"""By the first word of a case."""
RESULTS = ("exact", "refused", "wrong", "crash")
TOKENS, FIRST_TOKENS = 40, 32
"""Of a sequence: five sliding windows; and of what is read at once before decoding."""
CACHES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")
"""What a model's output calls what the next token needs; its input calls it the same."""

Outcome = tuple[str, str]
"""One of RESULTS, and why."""


class Row(NamedTuple):
    """One cut of one model."""

    case: str
    cut: str
    removed: tuple[int, ...]
    depthcut: Outcome
    mergekit: Outcome | None = None
    cache: bool = True
    """Whether the whole model decodes token by token, so that this was compared too."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--no-mergekit", action="store_true")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=120, help="time limit of one model")
    parser.add_argument("--scratch", help="folder for the checkpoints")
    asked = parser.parse_args()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    cases = recipe_cases() | type_cases() | older_cases()
    wanted = asked.names or (QUICK if asked.quick else list(cases))
    if unknown := [name for name in wanted if not any(speaks_of(case, name) for case in cases)]:
        parser.error(f"no such model type, variant or recipe: {', '.join(unknown)}")
    chosen = {
        case: make for case, make in cases.items() if any(speaks_of(case, name) for name in wanted)
    }
    mergekit = not asked.no_mergekit and importlib.util.find_spec("mergekit") is not None
    began = time.monotonic()
    measuring = Measuring(asked.scratch, mergekit=mergekit)
    rows = run(chosen, measuring, jobs=asked.jobs, seconds=asked.seconds)
    print_rows(rows)
    counts = print_counts(rows)
    print(f"{len(chosen)} models in {time.monotonic() - began:.0f} s")
    if len(chosen) == len(cases):
        against = {"mergekit": version("mergekit")} if mergekit else {}
        cuts: dict[str, dict[str, object]] = {}
        for row in rows:
            cuts.setdefault(row.case, {})[row.cut] = kept(row)
        content = {**against, "counts": counts, "cuts": cuts}
        results.keep("architectures", content)  # type: ignore[attr-defined]


# --- models -----------------------------------------------------------------------------------


class Parent(NamedTuple):
    """A model to be cut, and how it is kept."""

    model: PreTrainedModel
    auto: Any
    """The auto class that loads it."""
    unsaid: tuple[str, ...] = ()
    """Fields of the text's config that its file leaves out, and the class works out."""

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        file = folder / "config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        for part in (config, config.get("text_config", {})):
            for field in self.unsaid:
                part.pop(field, None)
        file.write_text(json.dumps(config), encoding="utf-8")


Make = Callable[[], Parent]


def type_cases() -> dict[str, Make]:
    plain: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in model_types()}

    def maker(model_type: str, changes: Mapping[str, Any]) -> Make:
        return lambda: Parent(build(model_type, **changes), auto_class(model_type))

    return {name: maker(*each) for name, each in (plain | dict(VARIANTS)).items()}


def older_cases() -> dict[str, Make]:
    """Types as files of before transformers 5 have them: without the lists that the class makes."""

    def maker(model_type: str, changes: Mapping[str, Any], unsaid: tuple[str, ...]) -> Make:
        return lambda: Parent(build(model_type, **changes), auto_class(model_type), unsaid)

    found = {}
    for model_type in model_types():
        if model_type == "zamba":  # six layers by its period have one hybrid: nothing to share
            continue
        whole = tiny_config(model_type)
        text = whole.get_text_config()
        unsaid = tuple(
            key
            for key, value in text.to_dict().items()
            if isinstance(value, list) and len(value) == LAYERS and key.endswith(("types", "type"))
        )
        changes: dict[str, Any] = dict.fromkeys(unsaid)
        if getattr(text, "num_kv_shared_layers", 0):  # the lists that the class makes cannot share
            changes["num_kv_shared_layers"] = 0
        if text is not whole:
            changes = {"text_config": changes}
        with contextlib.suppress(Exception):  # some types need their lists
            made = tiny_config(model_type, **changes).get_text_config()
            if unsaid and all(len(getattr(made, field)) == LAYERS for field in unsaid):
                found[f"older {model_type}"] = maker(model_type, changes, unsaid)
    return found


def recipe_cases() -> dict[str, Make]:
    """The recipes beside this checkout, if they are there."""
    recipes = json.loads(RECIPES.read_text(encoding="utf-8")) if RECIPES.exists() else []

    def maker(recipe: Mapping[str, Any]) -> Make:
        def make() -> Parent:
            config = CONFIG_MAPPING[recipe["model_type"]](**recipe["config"])
            return Parent(from_config(config, AutoModelForCausalLM), AutoModelForCausalLM)

        return make

    return {f"recipe {recipe['model_type']}": maker(recipe) for recipe in recipes}


def speaks_of(case: str, name: str) -> bool:
    """Whether a case is the named one or a variant or recipe of the named type."""
    return name in (case, case.removeprefix("recipe ").removeprefix("older ").split(" ")[0])


def load(auto: Any, folder: Path) -> PreTrainedModel:
    """As plain transformers does it; a ValueError says which keys do not fit."""
    model, info = auto.from_pretrained(
        folder, output_loading_info=True, ignore_mismatched_sizes=True, dtype=torch.float32
    )
    if any(info.values()):
        found = (
            f"{len(keys)} {what}: {min(map(str, keys))}" for what, keys in info.items() if keys
        )
        raise ValueError(" and ".join(found))
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()  # where a file's bytes lie decides a kernel's last bit
    model.train(False)
    assert isinstance(model, PreTrainedModel)
    return model


# --- the oracle -------------------------------------------------------------------------------


@contextlib.contextmanager
def passing_on(model: nn.Module, removed: Sequence[int]) -> Iterator[None]:
    """In this context the removed layers run, fill their caches, and pass their input on.

    No index, mask or config of a kept layer changes: independent of how a cut is expressed.
    """
    stacks = stacks_of(model)
    if not stacks:
        raise ValueError(f"no list of {LAYERS} modules in {type(model).__name__}")
    layers = [stack[layer] for stack in stacks for layer in removed]
    try:
        for layer in layers:
            layer.forward = _passing(layer)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def stacks_of(model: nn.Module) -> list[nn.ModuleList]:
    """All lists of as many modules as there are layers; several stand in parallel."""
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == LAYERS
    }
    inner = {name for name in lists for other in lists if name.startswith(f"{other}.")}
    return [module for name, module in lists.items() if name not in inner]


def _passing(layer: nn.Module) -> Callable[..., Any]:
    forward = layer.forward
    kind = type(layer).__name__

    def run(*args: Any, **kwargs: Any) -> Any:
        given = [*args, *kwargs.values()]
        states = (args[0] if args else kwargs["hidden_states"]).clone()
        output = forward(*args, **kwargs)
        if kind in ("MultiHeadAttention", "TransformerFFN"):  # XLM adds these itself
            states = torch.zeros_like(states)
        if kind == "ReformerLayer":  # two streams
            return output._replace(attn_output=given[0], hidden_states=given[1])
        if kind == "ZayaDecoderLayer":  # the router has a stream of its own
            return states, given[1]
        if isinstance(output, (tuple, list)):
            return type(output)([states, *output[1:]])
        return states

    return run


class Answers(NamedTuple):
    """What a model says of the tokens, and how it says it token by token."""

    logits: Tensor
    decoded: Tensor | None
    """None: it was not asked to, or returns no cache."""


def answers_of(model: PreTrainedModel, tokens: Tensor, *, decode: bool = True) -> Answers:
    with torch.no_grad():
        torch.manual_seed(0)  # for types that draw numbers
        logits = model(tokens, use_cache=False).logits
        return Answers(logits, _decode(model, tokens) if decode else None)


def _decode(model: PreTrainedModel, tokens: Tensor) -> Tensor | None:
    steps: list[Tensor] = []
    cache: dict[str, Any] = {}
    for start, stop in [(0, FIRST_TOKENS), *((i, i + 1) for i in range(FIRST_TOKENS, TOKENS))]:
        torch.manual_seed(0)
        output = model(tokens[:, start:stop], use_cache=True, **cache)
        cache = {name: output[name] for name in CACHES if output.get(name) is not None}
        if not cache:
            return None
        steps.append(output.logits[:, -1])
    return torch.stack(steps, dim=1)


def compared(found: Answers, expected: Answers) -> Outcome:
    if not torch.equal(found.logits, expected.logits):
        return "wrong", f"loads, but its logits differ{_by(found.logits, expected.logits)}"
    if expected.decoded is None:
        return "exact", ""
    if found.decoded is None:
        return "wrong", "returns no cache"
    if torch.equal(found.decoded, expected.decoded):
        return "exact", ""
    by = _by(found.decoded, expected.decoded)
    return "wrong", f"its logits differ when it decodes with a cache{by}"


def _by(found: Tensor, expected: Tensor) -> str:
    if found.shape != expected.shape:
        return f" in shape: {tuple(found.shape)}, not {tuple(expected.shape)}"
    return f" by {(found - expected).abs().max().item():.1e}"


# --- one model --------------------------------------------------------------------------------


class Measuring(NamedTuple):
    scratch: str | None
    mergekit: bool

    def rows(self, case: str, make: Make) -> list[Row]:
        """All cuts of one model."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as name:
            folder = Path(name) / "model"
            parent = make()
            parent.save(folder)
            judge = Judge(load(parent.auto, folder), parent.auto)
            return [self._row(case, cut, folder, judge) for cut in CUTS]

    def _row(self, case: str, cut: str, folder: Path, judge: "Judge") -> Row:
        choices = [(layer,) for layer in range(LAYERS)] if cut == "first" else [CUTS[cut]]
        refused = None
        for removed in choices:
            ours = judge(slice_by_depthcut, folder, removed)
            if ours[0] != "refused":
                break
            refused = refused or ours
        else:
            removed, ours = choices[0], refused or ours
        theirs = judge(slice_by_mergekit, folder, removed) if self.mergekit else None
        return Row(case, cut, removed, ours, theirs, judge.decodes)


class Judge:
    """Compares what tools make of a model with the model whose layers pass their input on."""

    def __init__(self, model: PreTrainedModel, auto: Any) -> None:
        self.model, self.auto = model, auto
        vocabulary = min(256, model.config.get_text_config().vocab_size)
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(3, vocabulary, (2, TOKENS), generator=generator)
        self.known: dict[tuple[int, ...], Answers] = {}
        self.whole = answers_of(model, self.tokens, decode=False).logits
        try:
            self.decodes = answers_of(model, self.tokens).decoded is not None
        except Exception:  # some types fail at it, whole as they are
            self.decodes = False

    def expected(self, removed: tuple[int, ...]) -> Answers:
        if removed not in self.known:
            with passing_on(self.model, removed):
                answers = answers_of(self.model, self.tokens, decode=self.decodes)
            self.known[removed] = answers
        return self.known[removed]

    def __call__(
        self,
        tool: Callable[[Path, Sequence[int], Path], None],
        folder: Path,
        removed: tuple[int, ...],
    ) -> Outcome:
        with tempfile.TemporaryDirectory(dir=folder.parent) as name:
            out = Path(name) / "out"
            try:
                tool(folder, removed, out)
            except DepthcutError as error:
                kind = "" if isinstance(error, ArchitectureError) else f"{type(error).__name__}: "
                return "refused", kind + str(error).replace(str(folder), "MODEL")
            except (Exception, SystemExit) as error:
                return "crash", said(error)
            try:
                found = answers_of(load(self.auto, out), self.tokens, decode=self.decodes)
            except Exception as error:
                return "wrong", f"does not load or run: {said(error)}"
        expected = self.expected(removed)
        result, why = compared(found, expected)
        if result == "exact" and torch.equal(expected.logits, self.whole):
            why = "proves little: the removed layers do nothing when there is only text"
        return result, why


def slice_by_depthcut(folder: Path, removed: Sequence[int], out: Path) -> None:
    facts = model_facts(open_checkpoint(folder), source=str(folder))
    remove = ",".join(map(str, removed))
    slice_checkpoint(folder, plan_by_hand(facts, PlanSettings(remove=remove)), out)


def slice_by_mergekit(folder: Path, removed: Sequence[int], out: Path) -> None:
    from mergekit.config import MergeConfiguration  # type: ignore[import-untyped]
    from mergekit.merge import run_merge  # type: ignore[import-untyped]
    from mergekit.options import MergeOptions  # type: ignore[import-untyped]

    kept = [layer for layer in range(LAYERS) if layer not in removed]
    slices = [
        {"sources": [{"model": str(folder), "layer_range": [layer, layer + 1]}]} for layer in kept
    ]
    recipe = {"slices": slices, "merge_method": "passthrough", "dtype": "float32"}
    options = MergeOptions(allow_crimes=True, copy_tokenizer=False, lazy_unpickle=True, quiet=True)
    run_merge(MergeConfiguration.model_validate(recipe), str(out), options=options)


def said(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]


# --- all models, each in a process of its own -------------------------------------------------


def run(cases: Mapping[str, Make], measuring: Measuring, *, jobs: int, seconds: float) -> list[Row]:
    """The rows of all cases, in their order. A case that hangs or dies takes no other along."""
    torch.set_num_threads(1)  # forks do not survive torch's threads
    if measuring.mergekit:
        importlib.import_module("mergekit.merge")
    left, found = list(cases)[::-1], dict[str, list[Row]]()
    running: dict[Connection, tuple[str, BaseProcess, float]] = {}
    while left or running:
        while left and len(running) < max(1, jobs):
            case = left.pop()
            ours, theirs = multiprocessing.Pipe(duplex=False)
            process: BaseProcess = multiprocessing.get_context("fork").Process(
                target=_answer, args=(theirs, measuring, case, cases[case])
            )
            process.start()
            theirs.close()
            running[ours] = case, process, time.monotonic() + seconds
        ready = wait(list(running), timeout=1)
        for ours, (case, process, deadline) in list(running.items()):
            if ours not in ready and time.monotonic() < deadline:
                continue
            why = f"no answer in {seconds:.0f} s"
            if ours in ready:
                try:
                    found[case] = ours.recv()
                except EOFError:
                    process.join()
                    why = f"the process ended with {process.exitcode}"
            process.kill()
            process.join()
            found.setdefault(case, [Row(case, cut, CUTS[cut], ("crash", why)) for cut in CUTS])
            del running[ours]
            if sys.stderr.isatty():
                print(f"\r{len(found)}/{len(cases)} {case:<40}", end="\r", file=sys.stderr)
    return [row for case in cases for row in found[case]]


def _answer(connection: Connection, measuring: Measuring, case: str, make: Make) -> None:
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    warnings.simplefilter("ignore")
    logging.disable()
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        rows = measuring.rows(case, make)
    except Exception as error:
        why = f"the benchmark failed, not the cut: {said(error)}"
        rows = [Row(case, cut, CUTS[cut], ("crash", why), cache=False) for cut in CUTS]
    connection.send(rows)


# --- what is printed --------------------------------------------------------------------------


def print_rows(rows: Sequence[Row]) -> None:
    """All cuts that are not exact."""
    for row in rows:
        result, why = row.depthcut
        if result != "exact":
            beaten = row.mergekit is not None and row.mergekit[0] == "exact"
            note = "[mergekit: exact] " if beaten else ""
            print(f"{row.case:<28} {','.join(map(str, row.removed)):<4} {result:<8} {note}{why}")
    if without := list(dict.fromkeys(row.case for row in rows if not row.cache)):
        print(f"no decoding with a cache to compare: {', '.join(without)}")


def kept(row: Row) -> dict[str, object]:
    """What a result file says of a cut."""
    said = {"depthcut": row.depthcut, "mergekit": row.mergekit}
    outcomes = {name: ": ".join(filter(None, each)) for name, each in said.items() if each}
    return {"removed": row.removed, **outcomes} | ({} if row.cache else {"cache": False})


def print_counts(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        kind = KINDS.get(row.case.split(" ")[0], "model types")
        kind = "variants" if row.case in VARIANTS else kind
        for contestant, outcome in [("depthcut", row.depthcut), ("mergekit", row.mergekit)]:
            if outcome is not None:
                counts.setdefault(f"{kind}, {contestant}", Counter())[outcome[0]] += 1
    print(f"{'':<24}{'cuts':>7}" + "".join(f"{result:>9}" for result in RESULTS))
    for name, found in counts.items():
        cells = "".join(f"{found[result]:>9}" for result in RESULTS)
        print(f"{name:<24}{found.total():>7}{cells}")
    better = sum((row.mergekit or ("",))[0] == "exact" != row.depthcut[0] for row in rows)
    if any(row.mergekit for row in rows):
        print(f"cuts where mergekit is exact and depthcut is not: {better}")
    return {name: dict(found) for name, found in counts.items()}


if __name__ == "__main__":
    main()

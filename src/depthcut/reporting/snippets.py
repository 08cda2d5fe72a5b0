"""What to type next: loading the result elsewhere, and doing the run again."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import msgspec

from depthcut.recipes import write_recipe
from depthcut.records import Origin
from depthcut.reporting.exports import mergekit_yaml
from depthcut.reporting.results import PLACES, Results
from depthcut.settings import Recipe, Settings


@dataclass(frozen=True)
class Snippet:
    """Something to copy."""

    title: str
    note: str
    code: str


@dataclass(frozen=True)
class Setting:
    """One setting as it was; `changed`: not the default."""

    name: str
    value: str
    changed: bool


@dataclass(frozen=True)
class Stage:
    """What one record says of how it was made."""

    name: str
    settings: tuple[Setting, ...]
    origin: Origin


def loading(results: Results) -> list[Snippet]:
    """How to load the last model of the run."""
    folder = results.model_folder
    if folder is not None:
        return [_transformers(folder), _vllm(folder), _llama_cpp(folder, results)]
    if results.plan:
        source, plan = results.plan.model.source, results.folder.resolve() / PLACES["plan"]
        out = results.folder.resolve() / "pruned"
        zero = " --zero" if results.plan.zeroed else ""
        return [
            Snippet(
                "First write the cut model",
                "Copies the bytes that stay; it needs no GPU and little memory.",
                f"depthcut slice {shlex.quote(source)} {_quoted(plan)}{zero} --out {_quoted(out)}",
            )
        ]
    return []


def mergekit(results: Results) -> Snippet | None:
    """The same cut for mergekit; None: it knows whole layers only."""
    if results.plan is None or results.plan.zeroed:
        return None
    return Snippet(
        "The same cut with mergekit",
        "mergekit-yaml cut.yaml OUT. It changes no per-layer settings in config.json but the "
        "number of layers"
        + (", and neither repairs nor heals." if results.repair or results.heal else "."),
        mergekit_yaml(results.plan),
    )


def recipe(results: Results) -> Snippet | None:
    """A recipe that makes the run again, where its records tell all of it."""
    survey, plan, evaluation = results.survey, results.plan, results.evaluation
    if survey is None or plan is None or evaluation is None:
        return None
    whole = Recipe(
        model=survey.model.source,
        load=survey.load,
        survey=survey.settings,
        search=results.search.settings if results.search and plan.search else None,
        plan=plan.settings,
        repair=results.repair.settings if results.repair else None,
        heal=results.heal.settings if results.heal else None,
        evaluate=evaluation.settings,
        bench=results.bench.settings if results.bench else None,
    )
    return Snippet(
        "The whole run as a recipe",
        "Save it as recipe.yaml, then: depthcut run recipe.yaml --out FOLDER",
        write_recipe(whole).decode(),
    )


def stages(results: Results) -> list[Stage]:
    """Settings, versions and times of every record."""
    found: list[Stage] = []
    for name, record in (
        ("survey", results.survey),
        ("search", results.search),
        ("sweep", results.sweep),
        ("repair", results.repair),
        ("heal", results.heal),
        ("evaluate", results.evaluation),
        ("bench", results.bench),
    ):
        if record is not None:
            shown = (*_settings(record.settings), *_settings(record.load))
            found.append(Stage(name, shown, record.origin))
    if results.plan:
        plan = Stage("plan", _settings(results.plan.settings), results.plan.origin)
        found.insert(1 if results.survey else 0, plan)
    return found


def _transformers(folder: Path) -> Snippet:
    return Snippet(
        "transformers",
        "An ordinary checkpoint: no code of depthcut is needed to load it.",
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"folder = {str(folder)!r}\n"
        'model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n",
    )


def _vllm(folder: Path) -> Snippet:
    return Snippet(
        "vLLM",
        "Serves an OpenAI-compatible endpoint on port 8000.",
        f"vllm serve {_quoted(folder)}\n",
    )


def _llama_cpp(folder: Path, results: Results) -> Snippet:
    original = results.original
    source = Path(original.source).name if original else folder.name
    kept = len(results.plan.kept_layers) if results.plan else 0
    name = re.sub(r"[^\w.-]+", "-", f"{source}-{kept}-layers").strip("-") + ".gguf"
    return Snippet(
        "llama.cpp",
        "Run it in a checkout of llama.cpp.",
        f"python convert_hf_to_gguf.py {_quoted(folder)} --outfile {name}\n"
        f'llama-cli -m {name} -p "Once upon a time"\n',
    )


def _settings(settings: Settings) -> tuple[Setting, ...]:
    fields = msgspec.structs.fields(settings)
    shown = []
    for field in fields:
        value = getattr(settings, field.name)
        words = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        shown.append(
            Setting(
                name=field.name.replace("_", " "),
                value="–" if value in (None, ()) else words,
                changed=value != field.default,
            )
        )
    return tuple(shown)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))

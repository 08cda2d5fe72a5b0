"""Recipes: what `depthcut run` does, as YAML; strict, and commented from the settings' own help."""

import ast
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

import depthcut.settings as settings_module
from depthcut.errors import RecordError, nearest
from depthcut.presets import preset_values
from depthcut.settings import (
    BenchSettings,
    EvaluateSettings,
    HealMethod,
    HealSettings,
    LoadSettings,
    Part,
    PlanSettings,
    Recipe,
    RepairSettings,
    SearchSettings,
    Settings,
    SurveySettings,
    Texts,
)

Effort = Literal["quick", "usual", "best"]
"""What choosing the layers may cost."""


def read_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file; unknown keys are refused, with the nearest name.

    Raises:
        RecordError: No such file, not YAML, unknown keys or values of the wrong kind.
    """
    try:
        return msgspec.convert(_with_preset(msgspec.yaml.decode(path.read_bytes())), Recipe)
    except OSError as error:
        raise RecordError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"recipe {path}: {_explained(str(error))}") from error


def _with_preset(recipe: Any) -> Any:
    """With heal's preset as the keys that it sets, where the recipe does not set them itself."""
    heal = recipe.get("heal") if isinstance(recipe, dict) else None
    if not isinstance(heal, dict) or "preset" not in heal:
        return recipe
    own = {key: value for key, value in heal.items() if key != "preset"}
    return recipe | {"heal": {**preset_values(str(heal["preset"]), own), **own}}


def write_recipe(recipe: Recipe) -> bytes:
    """A recipe as YAML."""
    return msgspec.yaml.encode(recipe)


_SEARCHES: Mapping[Effort, SearchSettings | None] = {
    "quick": None,
    "usual": SearchSettings(),
    "best": SearchSettings(method="beam", tokens=65536),
}


def common_recipe(
    model: str,
    *,
    text: Texts | None = None,
    eval_text: Texts | None = None,
    drop: int | str | None = None,
    repair: str | None = None,
    heal: HealMethod | None = None,
    heal_steps: int = 0,
    tasks: tuple[str, ...] = (),
    data: str | None = None,
    effort: Effort = "usual",
    load: LoadSettings | None = None,
) -> Recipe:
    """The recipe of the common case.

    One text serves both sides: seven of eight sequences calibrate and train, the others judge.
    With `eval_text` each text serves one side whole.

    How the layers are chosen was chosen itself by a sweep of every way (docs/log.md). quick takes
    those of least block influence, the best of what a survey alone tells; usual searches with
    second thoughts (floating), which found no worse choices than any dearer search; best keeps
    several choices on the way and reads four times as much.

    With `repair`, a method of it, layer 0 stays: the layer before each cut makes up for it. With
    `heal`, or with `heal_steps` alone by lora, the model before the cut teaches.
    """
    calibration = text or "builtin"
    part: Part = "all" if eval_text else "train"
    going = "25%" if drop is None else drop
    search = _SEARCHES[effort]
    protect = "0" if repair else None
    if search is not None:
        search = msgspec.structs.replace(
            search, text=calibration, part=part, drop=going, protect=protect
        )
    steps = heal_steps or HealSettings().steps
    return Recipe(
        model=model,
        load=load or LoadSettings(),
        survey=SurveySettings(text=calibration, part=part),
        search=search,
        plan=PlanSettings(drop=going, criterion="block-influence", protect=protect),
        repair=RepairSettings(text=calibration, part=part, method=repair) if repair else None,
        heal=HealSettings(
            text=calibration, part=part, method=heal or "lora", teacher="parent", steps=steps
        )
        if heal or heal_steps
        else None,
        evaluate=EvaluateSettings(
            text=eval_text or calibration,
            part="all" if eval_text else "held-out",
            tasks=tasks,
            data=data,
        ),
    )


def demo_recipe(*, quick: bool = False, heal: bool = False) -> Recipe:
    """The embedded model and text, sized for two cores; `quick` reads and trains less.

    Quick, it takes the layers of least block influence; else it searches, on few tokens. The cut
    is repaired; with `heal` the model is trained too.
    """
    healing = HealSettings(
        part="train",
        teacher="parent",
        context=256,
        batch_size=2 if quick else 4,
        steps=20 if quick else 80,
        held_out_tokens=1024 if quick else 2048,
        eval_every=5 if quick else 20,
    )
    return Recipe(
        survey=SurveySettings(part="train", tokens=8192 if quick else 32768),
        search=None
        if quick
        else SearchSettings(part="train", drop=5, tokens=4096, context=128, protect="0"),
        plan=PlanSettings(drop=5, criterion="block-influence", protect="0"),
        repair=RepairSettings(
            part="train",
            method="refit-mlp" if quick else "refit",
            tokens=8192 if quick else 32768,
        ),
        heal=healing if heal else None,
        evaluate=EvaluateSettings(
            part="held-out",
            tokens=4096 if quick else 16384,
            new_tokens=24 if quick else 48,
        ),
        bench=BenchSettings(rounds=3 if quick else 5),
    )


_SWITCHED_OFF: Mapping[str, Settings] = {
    "search": SearchSettings(part="train"),
    "repair": RepairSettings(part="train"),
    "heal": HealSettings(part="train", teacher="parent"),
}
"""Stages that a recipe leaves out by default, as they are shown for switching on."""


def commented_recipe() -> str:
    """Every key of a recipe with its default and its help."""
    help_texts = _help_texts()
    lines = ["# A recipe for depthcut run: every key, its default, what it does.", ""]
    for field in msgspec.structs.fields(Recipe):
        lines += _comment(help_texts.get(("Recipe", field.name), ""), indent=0)
        value = getattr(Recipe(), field.name)
        if isinstance(value, Settings):
            lines += _section(field.name, value, help_texts)
        else:
            lines.append(f"{field.name}: {_yaml(value)}")
        if field.name in _SWITCHED_OFF:
            shown = _section(field.name, _SWITCHED_OFF[field.name], help_texts)
            lines += [f"# {line}" for line in shown]
        lines.append("")
    return "\n".join(lines)


def _section(
    name: str, settings: Settings, help_texts: dict[tuple[str, str], str]
) -> Iterator[str]:
    yield f"{name}:"
    owners = [owner.__name__ for owner in type(settings).__mro__]
    for key, default in msgspec.structs.asdict(settings).items():
        text = next((help_texts[o, key] for o in owners if (o, key) in help_texts), "")
        yield from _comment(text, indent=2)
        yield f"  {key}: {_yaml(default)}"


def _yaml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    return msgspec.yaml.encode(value).decode().removesuffix("...\n").strip()


def _comment(text: str, *, indent: int) -> Iterator[str]:
    prefix = " " * indent + "# "
    yield from textwrap.wrap(text, 96, initial_indent=prefix, subsequent_indent=prefix)


def _help_texts() -> dict[tuple[str, str], str]:
    """(class, field) -> the string under the field, which tyro shows as its help too."""
    found = {}
    for node in ast.parse(Path(settings_module.__file__).read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, below in zip(node.body, node.body[1:], strict=False):
            match field, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[node.name, name] = " ".join(text.split())
    return found


def _explained(message: str) -> str:
    """msgspec's message, with the nearest key of the struct that an unknown one was found in."""
    match = re.search(r"unknown field `(.+?)`(?: - at `\$\.?(.*?)`)?$", message)
    if match is None:
        return " ".join(message.split())
    owner: Settings = Recipe()
    if match[2]:
        owner = _SWITCHED_OFF.get(match[2]) or getattr(owner, match[2])
    known = owner.__struct_fields__
    where = f" in {match[2]}" if match[2] else ""
    return f"unknown key {match[1]!r}{where}{nearest(match[1], known)}; it takes {', '.join(known)}"

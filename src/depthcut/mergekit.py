"""mergekit's YAML, as far as it arranges layers: merge_method passthrough, slices of one source.

What would change a weight is refused; what does not matter to weights is noted.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from depthcut.errors import SettingsError, nearest, short
from depthcut.records import LayerSlice

_KEYS: Mapping[str, frozenset[str]] = {
    "": frozenset(
        {"slices", "merge_method", "models", "modules", "base_model", "dtype", "out_dtype"}
        | {"tokenizer_source", "tokenizer", "chat_template", "parameters"}
    ),
    "slice": frozenset({"sources", "base_model", "residual_weight", "parameters"}),
    "source": frozenset({"model", "layer_range", "parameters"}),
    "model": frozenset({"model", "lora", "override_architecture"}),
    "model path": frozenset({"path", "revision"}),
}
"""What mergekit understands, by place."""


@dataclass(frozen=True)
class MergekitRecipe:
    """Which layers a passthrough recipe puts together."""

    slices: tuple[LayerSlice, ...]
    """Each with the name of its model."""
    dtypes: tuple[str, ...]
    """Which the weights shall have; the copy keeps their own, so it must be these."""
    notes: tuple[str, ...]
    """What it also says and what means nothing for the weights, in sentences."""


def read_mergekit(file: Path) -> MergekitRecipe:
    """The arrangement in a mergekit YAML file.

    Raises:
        SettingsError: The file cannot be read, merges by another method, takes several sources
            for one slice, or would change weights.
    """
    recipe = _object(_loaded(file), f"{file}", "")
    method = recipe.get("merge_method")
    if method != "passthrough":
        raise SettingsError(
            f"{file}: merge_method {short(method)} computes new weights; only passthrough, which "
            "arranges layers, can be planned"
        )
    if other := next((key for key in ("models", "modules") if recipe.get(key)), None):
        raise SettingsError(
            f"{file}: {other} names no layers; write slices, each with one source and its "
            "layer_range"
        )
    _refuse_scales(recipe, str(file))
    slices = tuple(
        _slice(each, f"{file}: slice {number}")
        for number, each in enumerate(_list(recipe.get("slices"), f"{file}: slices"), start=1)
    )
    dtypes = tuple(str(recipe[key]) for key in ("dtype", "out_dtype") if recipe.get(key))
    return MergekitRecipe(slices, dtypes, tuple(_notes(recipe, str(file))))


def _loaded(file: Path) -> object:
    import yaml

    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read the recipe {file}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SettingsError(f"{file} is not YAML: {reason}") from error


def _slice(value: object, where: str) -> LayerSlice:
    given = _object(value, where, "slice")
    _refuse_scales(given, where)
    if given.get("residual_weight") is not None:
        raise SettingsError(f"{where}: residual_weight changes weights; leave it out")
    sources = _list(given.get("sources"), f"{where}: sources")
    if len(sources) != 1:
        raise SettingsError(
            f"{where} has {len(sources)} sources; passthrough takes the layers of one"
        )
    source = _object(sources[0], where, "source")
    _refuse_scales(source, where)
    span = source.get("layer_range")
    if (
        not isinstance(span, list)
        or len(span) != 2
        or not all(type(layer) is int for layer in span)
        or not 0 <= span[0] < span[1]
    ):
        raise SettingsError(
            f"{where}: layer_range must be [first, behind the last], counted from 0, found "
            f"{short(span)}"
        )
    return LayerSlice(start=span[0], stop=span[1], model=_model(source.get("model"), where))


def _model(value: object, where: str) -> str:
    """The path or hub id, without a revision."""
    if isinstance(value, dict):
        given = _object(value, where, "model")
        if given.get("lora") is not None:
            raise SettingsError(f"{where}: the lora of a model changes weights; merge it first")
        inner = given.get("model")
        path = _object(inner, where, "model path").get("path") if _is_object(inner) else inner
    else:
        path = value
    if not isinstance(path, str) or not path:
        raise SettingsError(f"{where}: model must be a path or hub id, found {short(value)}")
    if "+" in path and not Path(path).exists():
        raise SettingsError(f"{where}: {path} adds a lora, which changes weights; merge it first")
    return path.partition("@")[0]


def _refuse_scales(given: Mapping[str, object], where: str) -> None:
    """passthrough knows one parameter, a factor for weights."""
    parameters = given.get("parameters")
    if isinstance(parameters, dict) and parameters.get("scale") not in (None, 1):
        raise SettingsError(
            f"{where}: parameters scale {short(parameters['scale'])} changes weights; leave it out"
        )


def _notes(recipe: Mapping[str, object], where: str) -> Iterator[str]:
    tokenizer = recipe.get("tokenizer")
    if _is_object(tokenizer) and tokenizer.keys() - {"source"}:
        changes = min(tokenizer.keys() - {"source"})
        raise SettingsError(f"{where}: tokenizer {changes} would change embeddings; leave it out")
    for key in ("tokenizer", "tokenizer_source", "chat_template"):
        if recipe.get(key) is not None:
            yield f"{key} is not followed: the tokenizer is carried as it is"
    slices = recipe.get("slices")
    parts: list[object] = [recipe]
    for each in slices if isinstance(slices, list) else []:
        parts += [each, *each["sources"]]
    for part in parts:
        parameters = part.get("parameters") if _is_object(part) else None
        others = sorted(map(str, parameters.keys() - {"scale"})) if _is_object(parameters) else []
        if others:
            yield f"the parameter {others[0]} is not followed: passthrough does not know it"


def _is_object(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict)


def _object(value: object, where: str, place: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise SettingsError(f"{where} must hold an object, found {short(value)}")
    known = _KEYS[place]
    if unknown := sorted(str(key) for key in value if key not in known):
        raise SettingsError(
            f"{where}: mergekit knows no {unknown[0]!r} here{nearest(unknown[0], known)}"
        )
    return value


def _list(value: object, where: str) -> list[object]:
    if not isinstance(value, list) or not value:
        raise SettingsError(f"{where} must be a list, found {short(value)}")
    return value

"""What an adapter's config says of layers, and the same for another stack.

PEFT tells which modules an adapter changes by endings, layer numbers and regular expressions.
What is written is read back as PEFT reads it: a module must be meant exactly if it was before.
Where the config's own way of saying it does not do, the modules are listed by name.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from depthcut.architectures.fields import Cut
from depthcut.architectures.names import OTHER_TOWERS
from depthcut.architectures.values import Config
from depthcut.checkpoint.adapters import ADAPTER_CONFIG, AdapterNames
from depthcut.errors import ArchitectureError, CheckpointError, PlanError

_ANY_LAYER = re.compile(
    r"""(?:
      \^ | \$ | \\b | \|
    | \((?:\?:)? | \)\??                       # a group
    | \.\*\??                                  # anything
    | \\?\.(?:\\d\+|\\w\+|\[0-9\]\+|\[\\d\]\{1,\}|\[\^.\]\+)(?=\\?\.)       # any index
    | \\\.                                     # a dot
    | (?<=[\w)*?+}\]])\.(?=\(?(?:\?:)?[A-Za-z_])   # any sign, but no index as it has no dots around
    | [A-Za-z_]\w*                             # a name or a part of it
    )*+""",
    re.VERBOSE,
)
"""Patterns that say of every layer what they say of one."""

_NUMBER = "[0-9]{1,9}"
_NAMES = ("modules_to_save", "target_parameters", "target_modules_bd_a", "target_modules_bd_b")
"""Fields with names or their ends."""
_PATTERNS = ("rank_pattern", "alpha_pattern", "trainable_token_indices")
"""Fields whose keys are patterns of names."""
_TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


@dataclass(frozen=True)
class AdapterCut:
    """What an adapter is cut by."""

    names: AdapterNames
    cut: Cut
    tuned: frozenset[str]
    """The modules that have parameters of the method before the cut."""

    def copies(self, module: str) -> list[str]:
        """The names of a module in the new stack."""
        layer = self.names.layer(module)
        if layer is None:
            return [module]
        kept = enumerate(self.cut.kept)
        return [self.names.renumber(module, new) for new, old in kept if old == layer]


def cut_adapter_config(config: Config, by: AdapterCut) -> dict[str, object]:
    """The config of the adapter for the new stack; nothing is changed in place.

    Args:
        config: adapter_config.json.
        by: What is cut.

    Raises:
        ArchitectureError: A field names layers in a way that cannot be renumbered.
        CheckpointError: A field that holds something else than PEFT writes.
        PlanError: No module that the adapter changes stays.
    """
    if config.get("layer_replication"):
        raise ArchitectureError(
            f"{ADAPTER_CONFIG}: layer_replication builds the base's layers anew when the adapter "
            "is loaded; merge the adapter into the model first and cut the result"
        )
    if not any(by.copies(module) for module in by.tuned):
        raise PlanError(
            "the adapter changes only layers that the plan removes: nothing of it would be left; "
            "use the cut model without it"
        )
    result = {**config, **_targets(config, by)}
    for key in _NAMES:
        if config.get(key) is not None:
            result[key] = _new_names(key, config[key], by) or None
    for key in _PATTERNS:
        value = config.get(key)
        if isinstance(value, dict):
            result[key] = {
                new: each for pattern, each in value.items() for new in _patterns(key, pattern, by)
            }
    if config.get("feedforward_modules") is not None:
        result["feedforward_modules"] = _feedforward(config["feedforward_modules"], by)
    known = {*_NAMES, *_PATTERNS, *_TARGETS, "feedforward_modules", "base_model_name_or_path"}
    for key in config.keys() - known:
        for text in _texts(config[key]):
            if _place(by).search(text):
                raise _cannot(key, text)
    return result


# --- which modules are changed -----------------------------------------------------------------


def _targets(config: Config, by: AdapterCut) -> dict[str, object]:
    """The fields that say which modules have parameters of the method."""
    excluded = config.get("exclude_modules")
    layers = _layers_to_transform(config, by)
    own = {key: config[key] for key in _TARGETS if key in config}
    if (excluded is None or isinstance(excluded, list) or _speaks_of_any(excluded, by)) and (
        _offer := _offered(config, layers, by)
    ):
        return own | _offer
    named = sorted({new for module in by.tuned for new in by.copies(module)})
    return own | {"target_modules": named} | dict.fromkeys(_TARGETS[1:] & own.keys())


def _offered(config: Config, layers: list[int] | None, by: AdapterCut) -> dict[str, object] | None:
    """The targets in the config's own way; None: that does not say what it should."""
    targets, excluded = config.get("target_modules"), config.get("exclude_modules")
    if targets is None or isinstance(targets, str):
        whole = targets is None or targets == "all-linear" or _speaks_of_any(targets, by)
        return {} if whole and layers is None else None
    offer: dict[str, object] = {
        "target_modules": list(_renumbered(_strings("target_modules", targets), by))
    }
    if isinstance(excluded, list):
        offer["exclude_modules"] = list(_renumbered(_strings("exclude_modules", excluded), by))
    if layers is not None:
        new = [index for index, old in enumerate(by.cut.kept) if old in layers]
        single = isinstance(config["layers_to_transform"], int) and len(new) == 1
        offer["layers_to_transform"] = new[0] if single else new
    return offer if offer["target_modules"] and _says_the_same(config, offer, by) else None


def _says_the_same(config: Config, offer: Config, by: AdapterCut) -> bool:
    """Whether each module is a target exactly if it was one before."""
    before, after = _Reader(config), _Reader({**config, **offer})
    if not before.readable:
        return False
    for module in sorted({by.names.renumber(module, 0) for module in by.tuned}):
        if by.names.layer(module) is None:
            if before.targets(module) != after.targets(module):
                return False
            continue
        was = {old: before.targets(by.names.renumber(module, old)) for old in set(by.cut.kept)}
        for new, old in enumerate(by.cut.kept):
            if after.targets(by.names.renumber(module, new)) != was[old]:
                return False
    return True


class _Reader:
    """Whether a module is a target, as PEFT decides it where target_modules is a list."""

    def __init__(self, config: Config) -> None:
        self._targets = _set(config.get("target_modules"))
        self._excluded = _set(config.get("exclude_modules"))
        self._saved = _set(config.get("modules_to_save"))
        layers = config.get("layers_to_transform")
        self._layers = _set([layers] if isinstance(layers, int) else layers)
        patterns = config.get("layers_pattern") or []
        names = [patterns] if isinstance(patterns, str) else patterns
        names = names if isinstance(names, list) else ["*"]
        self.readable = all(re.fullmatch(r"\w[\w.]*", str(name)) for name in names)
        lists = "|".join(re.escape(str(name)) for name in names)
        self._index = re.compile(
            rf"(?:^|.*?\.)(?:{lists})\.({_NUMBER})\." if names else rf".*?\.[^.]*\.({_NUMBER})\."
        )

    def targets(self, module: str) -> bool:
        parts = module.split(".")
        ends = {".".join(parts[start:]) for start in range(len(parts))}
        if ends & self._excluded or not ends & self._targets:
            return False
        if any(f".{name}." in f".{module}." for name in self._saved):
            return False
        if module in self._targets or not self._layers:
            return True
        match = self._index.match(module)
        return match is not None and int(match[1]) in self._layers


def _layers_to_transform(config: Config, by: AdapterCut) -> list[int] | None:
    value = config.get("layers_to_transform")
    if value is None or value == []:
        return None
    given = value if isinstance(value, list) else [value]
    layers = [layer for layer in given if type(layer) is int and layer >= 0]
    if len(layers) < len(given):
        raise CheckpointError(
            f"{ADAPTER_CONFIG}: layers_to_transform must be a layer or a list of layers, found "
            f"{str(value)[:80]}; correct it"
        )
    return layers


# --- names and patterns ------------------------------------------------------------------------


def _new_names(key: str, value: object, by: AdapterCut) -> list[str]:
    names = _strings(key, value)
    for name in names:
        match = _place(by).search(name)
        if match and not (
            _is_ours(name[: match.end("list")], by) or OTHER_TOWERS.search(name[: match.start()])
        ):
            raise _cannot(key, name)
        if re.match(r"[0-9]+(?:\.|$)", name):  # the end of a layer's name, or of an expert's
            raise _cannot(key, name)
    return list(_renumbered(names, by))


def _renumbered(names: Iterable[str], by: AdapterCut) -> Iterator[str]:
    """Names or ends of names, once for each new layer that they speak of."""
    for name in names:
        match = _place(by).search(name)
        if match is None or OTHER_TOWERS.search(name[: match.start()]):
            yield name
            continue
        head, tail = name[: match.start("index")], name[match.end("index") :]
        for new, old in enumerate(by.cut.kept):
            if match["index"].isdecimal() and int(match["index"]) == old:
                yield f"{head}{new}{tail}"


def _patterns(key: str, pattern: object, by: AdapterCut) -> Iterator[str]:
    """A pattern for each new layer that it speaks of; itself where it speaks of all alike."""
    assert isinstance(pattern, str)  # a key of JSON
    match = _place(by).search(pattern)
    if match is None or OTHER_TOWERS.search(pattern[: match.start()]):
        if not _speaks_of_any(pattern, by):
            raise _cannot(key, pattern)
        yield pattern
        return
    head, tail = pattern[: match.start("index")], pattern[match.end("index") :]
    numbers = {int(number) for number in re.findall("[0-9]+", match["index"])}
    if not (
        _speaks_of_any(rf"{head}\d+{tail}", by)
        and _is_ours(pattern[: match.end("list")], by)
        and max(numbers) < by.cut.layers
    ):
        raise _cannot(key, pattern)
    new = [str(index) for index, old in enumerate(by.cut.kept) if old in numbers]
    if match["index"].isdecimal():
        yield from (f"{head}{index}{tail}" for index in new)
    elif new:
        yield f"{head}({'|'.join(new)}){tail}"


def _place(by: AdapterCut) -> re.Pattern[str]:
    """Where a name or a pattern says which layer."""
    lists = "|".join(sorted({re.escape(stack.rpartition(".")[2]) for stack in by.names.stacks}))
    return re.compile(
        rf"(?<!\w)(?P<list>{lists})\\?\."
        rf"(?P<index>{_NUMBER}|\((?:\?:)?{_NUMBER}(?:\|{_NUMBER})*\))(?=\\?\.|$)"
    )


def _speaks_of_any(pattern: object, by: AdapterCut) -> bool:
    """Whether a pattern says of every layer what it says of one; False where that is unclear."""
    if not isinstance(pattern, str):
        return False
    lists = {stack.rpartition(".")[2] for stack in by.names.stacks}
    inner = re.sub(  # an expert's number
        r"(?<![^.(|^])([A-Za-z_]\w*)(\\?\.)[0-9]+(?=\\?\.|$)",
        lambda match: match[0] if match[1] in lists else rf"{match[1]}",
        pattern,
    )
    return _ANY_LAYER.fullmatch(inner) is not None


def _is_ours(path: str, by: AdapterCut) -> bool:
    plain = re.sub(r"^\^?(?:\.\*\??(?:\\?\.)?)?", "", path).replace("\\", "")
    stacks = [f".{stack}" for stack in by.names.stacks]
    return any(s.endswith(f".{plain}") or f".{plain}".endswith(s) for s in stacks)


def _feedforward(value: object, by: AdapterCut) -> object:
    if isinstance(value, str):
        if not _speaks_of_any(value, by):
            raise _cannot("feedforward_modules", value)
        return value
    return _new_names("feedforward_modules", value, by)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for entry in value:
            yield from _texts(entry)
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            yield from (str(name), *_texts(entry))


def _strings(key: str, value: object) -> list[str]:
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return value
    raise CheckpointError(
        f"{ADAPTER_CONFIG}: {key} must be a list of names, found {str(value)[:80]}; correct it"
    )


def _set(value: object) -> set[object]:
    return (
        {each for each in value if isinstance(each, str | int)}
        if isinstance(value, list)
        else set()
    )


def _cannot(key: str, text: str) -> ArchitectureError:
    return ArchitectureError(
        f"{ADAPTER_CONFIG}: {key} names layers by {text!r}, which depthcut cannot renumber; write "
        "the modules' names out, one for each layer"
    )

"""Which layer a name speaks of, and the same name once layers have moved."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from depthcut.architectures.fields import Cut
from depthcut.errors import ArchitectureError

OTHER_TOWERS = re.compile(
    r"vision|visual|vit\b|image|img|audio|speech|encoder|codec|talker|code2wav|sam_model|mtp"
)
"""In the path of a list of layers: it is not the text decoder's."""

_INDEX = (
    r"(?:\{[A-Za-z_]*\}|(?=[0-9\[({]|\\[dw])"
    r"(?:[0-9]+|\[[^\]]*\]|\\[dw]|[()|?:{},+]|(?<=[\])dw])\*)+)"
)
"""A number, or an expression for some: `3`, `[0-3]`, `(?:[0-9]|1[0-7])`, `\\d+`; or `{i}`."""
_LONGEST_INDEX = 400
"""Longer expressions are not tried, nor those with many repetitions: they may take for ever."""
_LONGEST_NAME = 2000
"""Of a module, or a pattern of one: how long it is looked at goes with the square."""


class LayerNames:
    """Names of tensors under the stack, which may lie at several torch paths.

    A checkpoint of the bare decoder leaves the first part of a path out (`h.0.ln_1.weight` for
    `transformer.h.0.ln_1.weight`); both forms are known.
    """

    def __init__(self, stacks: Sequence[str]) -> None:
        paths = (_path(stack) for stack in stacks)
        self._pattern = re.compile(rf"((?:{'|'.join(paths)})\.)(0|[1-9][0-9]*)(\..+)", re.DOTALL)

    def layer(self, name: str) -> int | None:
        """The layer that a tensor belongs to; None: it lies outside the stack."""
        match = self._pattern.fullmatch(name)
        return int(match[2]) if match and len(match[2]) < 9 else None

    def tail(self, name: str) -> str:
        """What follows the layer's index: `self_attn.q_proj.weight`; '' outside the stack."""
        match = self._pattern.fullmatch(name)
        return match[3].removeprefix(".") if match else ""

    def renumber(self, name: str, layer: int) -> str:
        """The name of the same tensor in another layer."""
        match = self._pattern.fullmatch(name)
        return f"{match[1]}{layer}{match[3]}" if match else name


def _path(stack: str) -> str:
    first, _, rest = stack.partition(".")
    return rf"(?:{re.escape(first)}\.)?{re.escape(rest)}" if rest else re.escape(first)


class ModuleNames:
    """Names and patterns of modules in a config (`model.layers.3.mlp`, `re:.*layers\\.3\\..*`).

    Libraries read them as names, as wildcards (`model.layers.3*`) or as regular expressions,
    which need to match only the beginning of a name.
    """

    def __init__(self, stacks: Sequence[str], cut: Cut) -> None:
        self._stacks = stacks
        self._cut = cut
        self._lists = sorted({re.escape(stack.rpartition(".")[2]) for stack in stacks})
        self._place = re.compile(
            r"(?P<path>(?:[\w.\\^*?+:()-]*[.\\(:^|])?)(?<!\w)"
            rf"(?P<list>{'|'.join(self._lists)})\\?\.(?P<index>{_INDEX})"
        )

        self._number = re.compile(rf"(?:{'|'.join(self._lists)}|\*)\\?\.[0-9\\(\[{{]")

    def renumbered(self, value: object) -> object:
        """A config's value where names of modules fit the layers that stay.

        Names of removed layers leave the lists and objects that hold them; those of repeated
        layers are repeated.

        Raises:
            ArchitectureError: A pattern names layers in a way that cannot be renumbered.
        """
        if isinstance(value, str):
            return next(self._names(value), None)
        if isinstance(value, list):
            return [new for entry in value for new in self._entries(entry)]
        if isinstance(value, dict):
            return {
                new: self.renumbered(entry)
                for key, entry in value.items()
                for new in self._names(key)
            }
        return value

    def _entries(self, entry: object) -> Iterator[object]:
        if isinstance(entry, str):
            yield from self._names(entry)
        else:
            yield self.renumbered(entry)

    def _names(self, text: str) -> Iterator[str]:
        """The text for each new layer that it speaks of; itself where it speaks of none."""
        if len(text) > _LONGEST_NAME:
            if self._number.search(text):
                raise _cannot(text)
            yield text
            return
        found = self._place.search(text)
        if found is None:
            yield from self._numbered_alone(text)
            return
        place = _Place.of(text, found)
        if OTHER_TOWERS.search(found["path"]) or place.is_no_number:
            yield text
            return
        if place.is_unclear or self._place.search(place.tail):
            raise _cannot(text)
        old = place.layers(self._cut.layers)
        new = [index for index, layer in enumerate(self._cut.kept) if layer in old]
        if self._speaks_of_all(place):
            yield text
        elif not self._is_ours(found["path"] + found["list"]):
            raise _cannot(text)
        elif not old:
            if not place.layers(self._cut.layers + self._cut.extra):
                raise _cannot(text)
        elif place.is_pattern:
            yield from self._pattern(place, new)
        elif place.may_be_pattern and (
            old != place.layers(self._cut.layers, longer=True)
            or any(_begins_others(index, len(self._cut.kept)) for index in new)
        ):
            raise _cannot(text)
        else:
            dot = "." if place.tail.startswith("*") else ""
            yield from (f"{place.head}{index}{dot}{place.tail}" for index in new)

    def _pattern(self, place: "_Place", new: Sequence[int]) -> Iterator[str]:
        """A regular expression for the new layers."""
        if not new and not re.search(r"\(\?|\|", place.head + place.tail):
            return
        more = place.is_open and any(_begins_others(index, len(self._cut.kept)) for index in new)
        if len(new) == 1 and not more:
            yield f"{place.head}{new[0]}{place.tail}"
            return
        numbers = f"({'|'.join(map(str, new))})" if new else "(?!)"  # the latter matches nothing
        end = r"(?=\.|$)" if more else ""
        yield f"{place.head}{numbers}{end}{place.tail}"

    def _numbered_alone(self, text: str) -> Iterator[str]:
        """A pattern with a number behind anything at all, as in `.*\\.18\\..*gate.*`.

        It speaks of the layer of that number, and of whatever else is counted, such as experts.
        """
        found = re.search(rf"(?P<front>\.[*+]\??)\\?\.(?P<index>{_INDEX})", text)
        place = _Place.of(text, found) if found else None
        if found is None or place is None or not place.is_pattern or place.is_no_number:
            yield text
            return
        if self._speaks_of_all(place):
            yield text
            return
        old = place.layers(self._cut.layers)
        if place.is_unclear or place.is_open or re.search(rf"\.[*+]\??\\?\.{_INDEX}", place.tail):
            raise _cannot(text)
        front, middle = text[: found.end("front")], text[found.end("front") : found.start("index")]
        new = [str(index) for index, layer in enumerate(self._cut.kept) if layer in old]
        if new:
            yield rf"{front}\b(?:{'|'.join(self._lists)})\.({'|'.join(new)}){place.tail}"
        others = "".join(rf"(?<!\b{name})" for name in self._lists)
        yield f"{front}{others}{middle}{place.index}{place.tail}"

    def _speaks_of_all(self, place: "_Place") -> bool:
        """Whether the place is for a number at all, and stands for every layer, old or new."""
        return not place.index.isdecimal() and all(
            len(place.layers(count)) == count for count in (self._cut.layers, len(self._cut.kept))
        )

    def _is_ours(self, path: str) -> bool:
        """Whether a path, or what a pattern says of it, may be the stack's."""
        plain = re.sub(r"^(re:|[-+]:)?\^?(\.?\*\??\\?\.?)?", "", path).replace("\\", "")
        return any(f".{stack}".endswith(f".{plain}") for stack in self._stacks)


@dataclass(frozen=True, slots=True)
class _Place:
    """A name or pattern, split where it gives the number of a layer."""

    head: str
    index: str
    """A number, or an expression for one."""
    tail: str

    @classmethod
    def of(cls, text: str, match: re.Match[str]) -> "_Place":
        index = match["index"]
        while index.endswith(")") and index.count(")") > index.count("("):
            index = index[:-1]
        start = match.start("index")
        return cls(text[:start], index, text[start + len(index) :])

    @property
    def is_pattern(self) -> bool:
        """Whether only a regular expression can be meant."""
        rest = self.head + self.tail
        return rest.startswith(("re:", "+:", "-:")) or any(sign in rest for sign in "\\([|^$")

    @property
    def may_be_pattern(self) -> bool:
        """Whether a wildcard or a name is meant, or an expression for longer numbers too."""
        return self.tail == "." or self.tail.startswith(".*")

    @property
    def is_no_number(self) -> bool:
        """Whether the digits go on as another word, or a template stands for any number."""
        word = self.index.isdecimal() and re.match(r"\w", self.tail) is not None
        return word or re.fullmatch(r"\{[A-Za-z_]*\}", self.index) is not None

    @property
    def is_open(self) -> bool:
        """Whether, as a regular expression, it lets more digits follow."""
        return re.match(r"\)*(\.[*+]|$)", self.tail) is not None

    @property
    def is_unclear(self) -> bool:
        """Whether it cannot be told where the number ends."""
        if self.tail.startswith("*"):
            return self.is_pattern
        return re.match(r"\)*(\.(?![.?{])|\\\.(?![*+?{])|\$|$)", self.tail) is None

    def layers(self, count: int, *, longer: bool | None = None) -> set[int]:
        """Those of so many layers that it stands for.

        Args:
            count: How many layers there are.
            longer: Whether numbers that only begin so count; default: as it is written.
        """
        if longer is None:
            longer = self.tail.startswith("*") or (self.is_pattern and self.is_open)
        if self.index.isdecimal() and (len(self.index) > 9 or int(self.index) >= count):
            return set()
        if len(self.index) > _LONGEST_INDEX or len(re.findall(r"[*+{]", self.index)) > 3:
            return set()
        try:
            pattern = re.compile(f"(?:{self.index}){'[0-9]*' if longer else ''}")
        except (re.error, OverflowError):
            return set()
        return {layer for layer in range(count) if pattern.fullmatch(str(layer))}


def _begins_others(number: int, count: int) -> bool:
    """Whether another layer's number begins with this one."""
    return number * 10 < count if number else False


def _cannot(text: str) -> ArchitectureError:
    return ArchitectureError(
        f"config.json names layers by number in {text!r}, a pattern that depthcut cannot "
        "renumber; write the names out, or remove it"
    )

"""Which layer a name speaks of, and the same name once layers have moved."""

import re
from collections.abc import Iterator, Sequence

from depthcut.checkpoint.fields import Cut
from depthcut.errors import ArchitectureError

OTHER_TOWERS = re.compile(
    r"vision|visual|vit\b|image|img|audio|speech|encoder|codec|talker|code2wav|sam_model|mtp"
)
"""In the path of a list of layers: it is not the text decoder's."""


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
    """Names and patterns of modules in a config (`model.layers.3.mlp`, `re:.*layers\\.3\\..*`)."""

    def __init__(self, stacks: Sequence[str], cut: Cut) -> None:
        self._stacks = stacks
        self._cut = cut
        lists = "|".join(sorted({re.escape(stack.rpartition(".")[2]) for stack in stacks}))
        # The list's name, its dot, and what stands where the index would: a number, a choice of
        # numbers, or a class of characters.
        self._place = re.compile(
            rf"(?P<path>(?:[\w.\\^*?+:()-]*[.\\(:^])?)(?<!\w)(?P<list>{lists})(?P<dot>\\?\.)"
            r"(?P<index>[0-9]+(?![0-9])|\((?:\?:)?[0-9]+(?:\|[0-9]+)*\)|\[|\\d|\(|\{)"
        )

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
        match = self._place.search(text)
        if match is None or self._any_number(text, match) or OTHER_TOWERS.search(match["path"]):
            yield text
            return
        numbers = [int(number) for number in re.findall("[0-9]+", match["index"])]
        ours = self._is_ours(match["path"] + match["list"])
        if not numbers or not ours or max(numbers) >= self._cut.layers:
            raise ArchitectureError(
                f"config.json names layers by number in {text!r}, a pattern that depthcut cannot "
                "renumber; write the names out, or remove it"
            )
        head, tail = text[: match.start("index")], text[match.end("index") :]
        new = [index for index, old in enumerate(self._cut.kept) if old in numbers]
        if match["index"].isdecimal():
            yield from (f"{head}{index}{tail}" for index in new)
        elif new:
            opening = "(?:" if match["index"].startswith("(?:") else "("
            yield f"{head}{opening}{'|'.join(map(str, new))}){tail}"

    def _any_number(self, text: str, match: re.Match[str]) -> bool:
        """Whether the pattern speaks of all layers alike."""
        rest = text[match.start("index") :]
        return re.match(r"(\[0-9\]|\\d)[+*]|\((\[0-9\]|\\d)[+*]\)|\{\w*\}", rest) is not None

    def _is_ours(self, path: str) -> bool:
        """Whether a path, or what a pattern says of it, may be the stack's."""
        plain = re.sub(r"^(re:|[-+]:)?\^?(\.\*\\?\.?|\.\*)?", "", path).replace("\\", "")
        return any(f".{stack}".endswith(f".{plain}") for stack in self._stacks)

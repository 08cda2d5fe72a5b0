"""Which layer a name speaks of, and the same name once layers are gone."""

import re

from depthcut.checkpoint.fields import Cut
from depthcut.errors import ArchitectureError


class LayerNames:
    """Names of tensors under the stack at torch path `stack`.

    A checkpoint of the bare decoder leaves the first part of the path out (`h.0.ln_1.weight`
    for `transformer.h.0.ln_1.weight`); both forms are known.
    """

    def __init__(self, stack: str) -> None:
        first, _, rest = stack.partition(".")
        head = rf"(?:{re.escape(first)}\.)?{re.escape(rest)}" if rest else re.escape(first)
        self._pattern = re.compile(rf"({head}\.)(0|[1-9][0-9]*)(\..+)", re.DOTALL)

    def layer(self, name: str) -> int | None:
        """The layer that a tensor belongs to; None: it lies outside the stack."""
        match = self._pattern.fullmatch(name)
        return int(match[2]) if match else None

    def tail(self, name: str) -> str:
        """What follows the layer's index: `self_attn.q_proj.weight`; '' outside the stack."""
        match = self._pattern.fullmatch(name)
        return match[3].removeprefix(".") if match else ""

    def renumber(self, name: str, layer: int) -> str:
        """The name of the same tensor in another layer."""
        match = self._pattern.fullmatch(name)
        return f"{match[1]}{layer}{match[3]}" if match else name


def renumber_module_names(value: object, stack: str, cut: Cut) -> object:
    """A config's value where names of modules (`model.layers.3.mlp`) fit the layers that stay.

    Names of removed layers leave the lists and objects that hold them.

    Raises:
        ArchitectureError: A pattern names layers by number, so that it cannot be renumbered.
    """
    last = re.escape(stack.rpartition(".")[2])
    exact = re.compile(rf"((?:[\w.]+\.)?{last}\.)([0-9]+)((?:\.[\w.*-]+)?)")
    suspicious = re.compile(rf"(?:^|[^\w]){last}\\?\.[\[(?:]*[0-9]")
    new_index = {old: new for new, old in enumerate(cut.kept)}

    def renamed(text: str) -> str | None:
        match = exact.fullmatch(text)
        if match and f".{stack}.".endswith(f".{match[1]}") and int(match[2]) < cut.layers:
            new = new_index.get(int(match[2]))
            return None if new is None else f"{match[1]}{new}{match[3]}"
        if suspicious.search(text):
            raise ArchitectureError(
                f"config.json names layers by number in {text!r}, a pattern that depthcut cannot "
                "renumber; write the names out, or remove it"
            )
        return text

    def gone(value: object) -> bool:
        return isinstance(value, str) and renamed(value) is None

    def walk(value: object) -> object:
        if isinstance(value, str):
            return renamed(value)
        if isinstance(value, list):
            return [walk(entry) for entry in value if not gone(entry)]
        if isinstance(value, dict):
            return {new: walk(entry) for key, entry in value.items() if (new := renamed(key))}
        return value

    return walk(value)

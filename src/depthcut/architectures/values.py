"""Reading and changing single values of a config, with suspicion."""

from collections.abc import Mapping

from depthcut.errors import ArchitectureError, short

Config = Mapping[str, object]

AROUND = "^"
"""The key under which fields of a decoder find the config around the decoder's own."""


def whole_number(config: Config, key: str, default: int | None = None) -> int | None:
    """The number that a config gives, or the default where it gives none.

    Raises:
        ArchitectureError: It gives something else.
    """
    value = value_at(config, key)
    if value is None:
        return default
    if type(value) is not int:
        raise ArchitectureError(
            f"config.json: {key} must be a whole number, found {short(value)}; correct it"
        )
    return value


def positive(config: Config, key: str, default: int) -> int:
    """A number that a config gives and that divides.

    Raises:
        ArchitectureError: It is none, or not positive.
    """
    value = whole_number(config, key, default)
    if value is None or value < 1:
        raise ArchitectureError(f"config.json: {key} must be a positive number, found {value}")
    return value


def layer_indices(config: Config, key: str, layers: int, *, base: int = 0) -> set[int] | None:
    """The layers that a list names, counted from `base`; what is no layer is left out.

    Raises:
        ArchitectureError: It is no list of whole numbers.
    """
    named = value_at(config, key)
    if named is None:
        return None
    if not isinstance(named, list) or not all(type(layer) is int for layer in named):
        raise ArchitectureError(
            f"config.json: {key} must be a list of layers, found {short(named)}; correct it"
        )
    return {layer - base for layer in named if base <= layer < layers + base}


def value_at(config: Config, key: str) -> object:
    """What a config gives for a key; `outer.inner` for a key of an object in it."""
    part: object = config
    for name in key.split("."):
        part = part.get(name) if isinstance(part, Mapping) else None
    return part


def with_value(config: Config, key: str, value: object) -> dict[str, object]:
    """The config with another value for a key, as `value_at` understands it."""
    name, _, rest = key.partition(".")
    if not rest:
        return {**config, name: value}
    part = config.get(name)
    return {**config, name: with_value(part if isinstance(part, Mapping) else {}, rest, value)}

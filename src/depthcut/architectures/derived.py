"""An entry for a model type that the table lacks, from the headers and the config.

What is derived is a guess that fits: whoever writes a checkpoint by it must load the result
before it counts as finished.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from depthcut.architectures.fields import Field, IndexMap, PerLayerList
from depthcut.architectures.names import OTHER_TOWERS
from depthcut.architectures.table import ARCHITECTURES, Architecture
from depthcut.architectures.values import Config
from depthcut.errors import ArchitectureError, nearest

_DECODERS = ("", "text_config", "llm_config", "language_config", "decoder")
"""Where a config may hold what it says of the text decoder; '': at the top."""
_COUNTS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "decoder_layers",
    "num_decoder_layers",
)


def derive_architecture(config: Config, names: Iterable[str]) -> Architecture:
    """The only list of layers whose length the config gives.

    Args:
        config: A checkpoint's config.json.
        names: Its tensors.

    Raises:
        ArchitectureError: No list fits, or several do.
    """
    model_type = config.get("model_type")
    lists = _lists(names)
    found = {
        (decoder, stack)
        for decoder in _DECODERS
        for stack, layers in lists.items()
        if layers in _numbers(_part(config, decoder))
    }
    stacks = {stack for _, stack in found}
    if len(stacks) > 1:
        stacks = {stack for stack in stacks if not OTHER_TOWERS.search(stack)}
    if len(stacks) != 1:
        unknown = f"model type {model_type!r} is not in depthcut's table"
        unknown += nearest(str(model_type), ARCHITECTURES)
        among = f"several fit: {', '.join(sorted(stacks))}" if stacks else "none fits its config"
        raise ArchitectureError(
            f"{unknown}, and its stack of layers cannot be told from its tensors "
            f"({len(lists)} numbered lists, {among})"
        )
    (stack,) = stacks
    decoder = max(decoder for decoder, each in found if each == stack)
    part = _part(config, decoder)
    layers = lists[stack]
    fields = tuple(_fields(part, layers))
    known = [key for field in fields for key in field.keys]
    return Architecture(
        stacks=(stack,),
        decoder=decoder,
        count=tuple(key for key in _COUNTS if part.get(key) == layers),
        fields=fields,
        assumed=(
            f"model type {model_type!r} is not in depthcut's table: its {layers} layers were "
            f"taken to be {stack}"
            + (f", {' and '.join(known)} to have one entry for each" if known else ""),
        ),
    )


def _part(config: Config, decoder: str) -> Config:
    part = config.get(decoder) if decoder else config
    return part if isinstance(part, dict) else {}


def _numbers(config: Config) -> set[object]:
    return {config[key] for key in _COUNTS if type(config.get(key)) is int}


def _lists(names: Iterable[str]) -> Mapping[str, int]:
    """Paths that are followed by every index from 0 on, and how many."""
    indices: defaultdict[str, set[int]] = defaultdict(set)
    for name in names:
        if match := re.match(r"(.+?)\.(0|[1-9][0-9]{0,5})\.", name):
            indices[match[1]].add(int(match[2]))
    return {
        path: len(found)
        for path, found in indices.items()
        if found == set(range(len(found))) and len(found) > 1
    }


def _fields(config: Config, layers: int) -> Iterator[Field]:
    for key, value in config.items():
        if not key.isprintable():
            continue
        if isinstance(value, list) and len(value) == layers and not key.endswith("_token_id"):
            yield PerLayerList(key)
        elif isinstance(value, dict) and value and all(_is_layer(name, layers) for name in value):
            yield IndexMap(key)


def _is_layer(name: object, layers: int) -> bool:
    return (
        isinstance(name, str)
        and re.fullmatch("[0-9]{1,6}", name) is not None
        and (int(name) < layers)
    )

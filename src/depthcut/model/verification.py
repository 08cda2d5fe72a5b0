"""What transformers makes of a sliced checkpoint, without its weights: on the meta device.

A model of any size is built in memory for its modules alone. Its parent is built beside it, and
what holds for the one must hold for the other.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from depthcut.architectures.names import OTHER_TOWERS, LayerNames
from depthcut.checkpoint.folder import Checkpoint, open_checkpoint
from depthcut.errors import ArchitectureError, CheckpointError, SettingsError
from depthcut.model.quiet import quiet_transformers

_AUTO_CLASSES = (AutoModelForCausalLM, AutoModelForImageTextToText)
_OF_THE_PLACE = frozenset(
    {"layer_idx", "layer_id", "layer_index", "index", "seed", "store_full_length_kv"}
)
"""Attributes that change with a layer's place and not with what it computes. BigBird's seed counts
in training only; whether keys are stored for later layers follows from what these read."""
_MAYBE_INDEX = re.compile(r"(?:^|_)(?:idx|id|index|number)(?:$|_)")
_ABSENT = "nothing"


@dataclass(frozen=True)
class _Built:
    """A model on the meta device, and what its loading said."""

    model: nn.Module
    missing: frozenset[str]
    unexpected: frozenset[str]
    misshapen: frozenset[str]


def check_build(
    folder: Path, parent: Path, kept: Sequence[int], *, trust_remote_code: bool = False
) -> None:
    """Prove that transformers builds from a sliced checkpoint what is left of its parent.

    No tensor is missing, unexpected or of another shape that was not so in the parent. Every
    layer has the modules, parameters, buffers and plain attributes (window, kind of attention,
    constants of depth) of the layer that it was. No weights are read. What the forward pass
    takes from the config or from an index anew is not seen.

    Args:
        folder: A checkpoint that was cut from `parent`.
        parent: Its parent.
        kept: The old layer of each new one.
        trust_remote_code: Allow Python code that comes with the checkpoints to run.

    Raises:
        CheckpointError: It cannot be built, or its tensors are not those of its modules.
        ArchitectureError: A layer is built otherwise than it was.
        SettingsError: The model comes with code of its own, which is not allowed.
    """
    before = _build(parent, trust_remote_code=trust_remote_code)
    after = _build(folder, trust_remote_code=trust_remote_code)
    checkpoint = open_checkpoint(parent)
    names = _layer_names(checkpoint, before.model)
    _check_tensors(folder, before, after, names, kept)
    architecture = checkpoint.architecture
    # Where a constant of depth lies in the checkpoint, the depth itself counts no more.
    ignored = frozenset(architecture.count) if architecture.stored else frozenset()
    _check_layers(before.model, after.model, names, kept, ignored)


def _build(folder: Path, *, trust_remote_code: bool) -> _Built:
    checkpoint = open_checkpoint(folder)
    # One dtype for all: a packed or integer tensor cannot be a parameter.
    state = {
        name: torch.empty(entry.shape, dtype=torch.bfloat16, device="meta")
        for name, entry in checkpoint.tensors.items()
    }
    try:
        with quiet_transformers():
            return _loaded(folder, state, trust_remote_code)
    except Exception as error:  # a config that does not fit its class fails in any way
        reason = " ".join(str(error).split())[:400]
        if not trust_remote_code and "auto_map" in checkpoint.config:
            raise SettingsError(
                f"{folder} needs the Python code that comes with it: allow it with "
                f"--trust-remote-code if you trust it ({reason})"
            ) from error
        raise CheckpointError(
            f"transformers cannot build {folder}: {type(error).__name__}: {reason}"
        ) from error


def _loaded(folder: Path, state: dict[str, torch.Tensor], trust_remote_code: bool) -> _Built:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    # Its package may not be here. Without it the same packed tensors are left over in parent
    # and cut.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model_class = _model_class(config, folder, trust_remote_code)
    try:
        model, report = model_class.from_pretrained(
            None,
            config=config,
            state_dict=state,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except NotImplementedError:  # it converts some tensors on the CPU, where these have no bytes
        with torch.device("meta"):
            return _Built(model_class._from_config(config), frozenset(), frozenset(), frozenset())
    return _Built(
        model,
        frozenset(report["missing_keys"]),
        frozenset(report["unexpected_keys"]),
        frozenset(name for name, *_ in report["mismatched_keys"]),
    )


def _layer_names(parent: Checkpoint, model: nn.Module) -> LayerNames:
    """Names of the stack in the model, which may lie elsewhere than in the checkpoint."""
    stacks = parent.architecture.stacks
    names = LayerNames(stacks)
    if _layers(model, names):
        return names
    lists = {
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == parent.layers
        and not OTHER_TOWERS.search(path)
    }
    if len(lists) != 1:
        found = f"several fit: {', '.join(sorted(lists))}" if lists else "none fits"
        raise ArchitectureError(
            f"{parent.folder}: the list of {parent.layers} layers cannot be told in the model that "
            f"transformers builds, {found}"
        )
    return LayerNames((*stacks, *lists))


def _model_class(config: Any, folder: Path, trust_remote_code: bool) -> Any:
    """The class that the config names, else the one that an auto class would take."""
    own = getattr(config, "auto_map", None) or {}
    for auto in _AUTO_CLASSES:
        if trust_remote_code and auto.__name__ in own:
            return get_class_from_dynamic_module(own[auto.__name__], folder)
    for name in config.architectures or ():
        named = getattr(transformers, name, None)
        if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
            return named
    for auto in _AUTO_CLASSES:
        mapping = cast(Any, auto)._model_mapping
        if type(config) in mapping:
            return mapping[type(config)]
    raise ValueError(f"no model class for {type(config).__name__}")


def _check_tensors(
    folder: Path, before: _Built, after: _Built, names: LayerNames, kept: Sequence[int]
) -> None:
    kinds = (
        ("does not hold", after.missing, before.missing),
        ("holds, but the model does not use,", after.unexpected, before.unexpected),
        ("holds in another shape than its model's", after.misshapen, before.misshapen),
    )
    for what, found, known in kinds:
        news = sorted(name for name in found if _in_parent(name, names, kept) not in known)
        if news:
            more = f" and {len(news) - 1} more" if len(news) > 1 else ""
            raise CheckpointError(f"{folder} {what} the tensor {news[0]}{more}")


def _in_parent(name: str, names: LayerNames, kept: Sequence[int]) -> str:
    layer = names.layer(name)
    return name if layer is None or layer >= len(kept) else names.renumber(name, kept[layer])


def _check_layers(
    before: nn.Module,
    after: nn.Module,
    names: LayerNames,
    kept: Sequence[int],
    ignored: frozenset[str],
) -> None:
    old_layers, new_layers = _layers(before, names), _layers(after, names)
    for new, old in enumerate(kept):
        wanted, found = old_layers.get(old, {}), new_layers.get(new, {})
        if not wanted or wanted.keys() != found.keys():
            raise ArchitectureError(
                f"layer {new}, which was layer {old}, is built from "
                f"{', '.join(found) or _ABSENT}; from {', '.join(wanted) or _ABSENT} in the parent"
            )
        for stack in wanted:
            _check_layer(wanted[stack], found[stack], new, kept, ignored)


def _layers(model: nn.Module, names: LayerNames) -> Mapping[int, Mapping[str, nn.Module]]:
    """The modules of each layer by the list that they stand in."""
    found: dict[int, dict[str, nn.Module]] = {}
    for name, module in model.named_modules():
        inside = f"{name}.x"  # a name of something in the module, as a tensor's is
        layer = names.layer(inside)
        if layer is not None and names.tail(inside) == "x":
            found.setdefault(layer, {})[name.rpartition(".")[0]] = module
    return found


def _check_layer(
    before: nn.Module, after: nn.Module, new: int, kept: Sequence[int], ignored: frozenset[str]
) -> None:
    wanted, found = dict(_traits(before)), dict(_traits(after))
    for name in sorted(wanted.keys() | found.keys()):
        was, now = wanted.get(name, _ABSENT), found.get(name, _ABSENT)
        # As text: a number and a bool must not be equal, a NaN must be.
        if repr(was) == repr(now) or _moved(name, was, now, kept):
            continue
        if name.rpartition(".")[2] in ignored:
            continue
        raise ArchitectureError(
            f"layer {new}, which was layer {kept[new]}, is built otherwise: {name} is {now!r}, "
            f"was {was!r}; the config cannot say this cut, choose another"
        )


def _traits(layer: nn.Module) -> Iterator[tuple[str, object]]:
    """All that a layer is built of, by path."""
    for path, module in layer.named_modules():
        here = f"{path}." if path else ""
        yield f"{here}class", type(module).__name__
        for name, tensor in (
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ):
            yield f"{here}{name}", tuple(tensor.shape)
        for name, value in vars(module).items():
            if _is_plain(value):
                yield f"{here}{name}", value


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _moved(name: str, was: object, now: object, kept: Sequence[int]) -> bool:
    """Whether an attribute speaks of the places of layers, and followed them."""
    last = name.rpartition(".")[2]
    if last in _OF_THE_PLACE:
        return True
    if isinstance(was, list | tuple) and isinstance(now, list | tuple):
        named = [new for new, old in enumerate(kept) if old in was]
        each = [was[old] for old in kept] if len(was) > max(kept) else None
        return list(now) in (named, each)
    if not _MAYBE_INDEX.search(last) or type(was) is not int or type(now) is not int:
        return False
    return 0 <= now < len(kept) and kept[now] == was

"""A PEFT adapter on disk: its config, its tensors, and which layers of its base they change."""

import re
from collections.abc import Iterable
from pathlib import Path

from depthcut.architectures.names import OTHER_TOWERS, LayerNames
from depthcut.architectures.table import ARCHITECTURES
from depthcut.checkpoint.folder import Checkpoint, read_object, refuse_outside
from depthcut.checkpoint.headers import read_header
from depthcut.errors import ArchitectureError, CheckpointError, PlanError
from depthcut.records import ModelFacts

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

TUNERS: dict[str, str] = {
    "ADALORA": "lora_",
    "BOFT": "boft_",
    "C3A": "c3a_",
    "DELORA": "delora_",
    "FOURIERFT": "fourierft_",
    "HRA": "hra_",
    "IA3": "ia3_",
    "LN_TUNING": "ln_tuning_",
    "LOHA": "hada_",
    "LOKR": "lokr_",
    "LORA": "lora_",
    "MISS": "miss_",
    "OFT": "oft_",
    "ROAD": "road_",
}
"""peft_type of the methods whose parameters stand at single modules, and how the names of these
parameters begin. Others hold parameters that layers share, or one for each layer in one tensor."""

_PREFIX = "base_model.model."
_WRAPPERS = frozenset({"base_layer", "modules_to_save", "token_adapter"})
"""What peft puts between a module's name and what it holds."""
_READ_WIDTH = frozenset(
    {"q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "gate_proj", "up_proj", "c_attn"}
)
"""Linear layers that read the residual stream in every architecture."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter rather than a model."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


class AdapterNames:
    """Names of an adapter's tensors and of the modules that it changes.

    In front of a tensor's name stands what PEFT wraps the model in.
    """

    def __init__(self, stacks: tuple[str, ...]) -> None:
        self.stacks = stacks
        self._layers = LayerNames(stacks)

    def layer(self, name: str) -> int | None:
        """The layer that a tensor or module belongs to; None: it lies outside the stack."""
        return self._layers.layer(name.removeprefix(_PREFIX))

    def tail(self, name: str) -> str:
        """What follows the layer's index; '' outside the stack."""
        return self._layers.tail(name.removeprefix(_PREFIX))

    def renumber(self, name: str, layer: int) -> str:
        """The name of the same tensor or module in another layer."""
        front = _PREFIX if name.startswith(_PREFIX) else ""
        return front + self._layers.renumber(name.removeprefix(_PREFIX), layer)


def open_adapter(folder: Path) -> Checkpoint:
    """Read what an adapter folder holds; the config is the adapter's.

    Raises:
        CheckpointError: No weights as safetensors, a damaged header, or a config that is none.
        ArchitectureError: A method that cannot be cut by layers.
    """
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, "README.md"):
        refuse_outside(folder / name, folder)
    config = read_object(folder / ADAPTER_CONFIG)
    method = config.get("peft_type")
    if not isinstance(method, str) or method not in TUNERS:
        raise ArchitectureError(
            f"{folder / ADAPTER_CONFIG}: adapters of peft_type {method!r} cannot be cut with their "
            f"base, only {', '.join(sorted(TUNERS))}; merge it into the base and cut the result"
        )
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        pickled = weights.with_suffix(".bin").is_file()
        found = f", only {weights.with_suffix('.bin').name}" if pickled else ""
        raise CheckpointError(
            f"{folder} has no {ADAPTER_WEIGHTS}{found}"
            + (
                ": a pickle is not read; load the adapter once with PeftModel.from_pretrained "
                "and save_pretrained it to a new folder"
                if pickled
                else ": an adapter folder as save_pretrained writes it is needed"
            )
        )
    return Checkpoint(folder, config, (read_header(weights),), None)


def find_names(adapter: Checkpoint, model: ModelFacts) -> AdapterNames:
    """Where the base's layers stand in the adapter's names.

    By the table where its names occur, else the only numbered list that there is.

    Args:
        adapter: An opened adapter.
        model: The base.

    Raises:
        ArchitectureError: There is none, or several could be.
        PlanError: The adapter speaks of layers that the base does not have.
    """
    names = [name.removeprefix(_PREFIX) for name in adapter.tensors]
    known = ARCHITECTURES.get(model.model_type)
    found = AdapterNames(known.stacks if known else ("model.layers",))
    if not known or not any(found.layer(name) is not None for name in names):
        lists = _lists(names)
        if len(lists) > 1:
            raise ArchitectureError(
                f"{adapter.folder}: which tensors belong to the {model.layers} layers of "
                f"{model.source} cannot be told from their names: they stand in "
                f"{', '.join(sorted(lists))}"
            )
        if lists:
            found = AdapterNames(tuple(lists))
    deepest = max((found.layer(name) or 0 for name in names), default=0)
    if deepest >= model.layers:
        raise PlanError(
            f"{adapter.folder} changes layer {deepest}, the plan's model {model.source} has layers "
            f"0–{model.layers - 1}: give the adapter of that model"
        )
    return found


def check_width(adapter: Checkpoint, names: AdapterNames, model: ModelFacts) -> None:
    """Raise PlanError if LoRA matrices do not fit the width of the base."""
    for entry in adapter.tensors.values():
        module = module_of(entry.name, "lora_")
        if names.layer(entry.name) is None or len(entry.shape) != 2 or ".lora_A." not in entry.name:
            continue
        if module.rpartition(".")[2] in _READ_WIDTH and entry.shape[1] % model.hidden_size:
            raise PlanError(
                f"{adapter.folder}: tensor {entry.name!r} (shape {list(entry.shape)}) reads "
                f"{entry.shape[1]} values, the plan's model {model.source} has a width of "
                f"{model.hidden_size}: give the adapter of that model"
            )


def module_of(name: str, tuner: str) -> str:
    """The module that a tensor of the adapter changes, as its base names it.

    Args:
        name: Of the tensor.
        tuner: How the names of the method's parameters begin.
    """
    parts = name.removeprefix(_PREFIX).split(".")
    for place, part in enumerate(parts):
        if part.startswith(tuner) or part in _WRAPPERS:
            return ".".join(parts[:place])
    return ".".join(parts[:-1])


def is_tuned(name: str, tuner: str) -> bool:
    """Whether a tensor is the method's own, rather than a trained copy of the base's."""
    return any(part.startswith(tuner) for part in name.removeprefix(_PREFIX).split("."))


def refuse_uncuttable(adapter: Checkpoint, names: AdapterNames, model: ModelFacts) -> None:
    """Raise ArchitectureError for a base that has no cut, or a change of what layers share."""
    known = ARCHITECTURES.get(model.model_type)
    if known is None:
        return
    if known.refusal:
        raise ArchitectureError(f"{model.model_type}: {known.refusal}")
    sliced = [f".{each.name.removesuffix('.weight')}." for each in known.sliced]
    for name in adapter.tensors:
        if any(each in f".{name}." for each in sliced):
            raise ArchitectureError(
                f"{adapter.folder} changes a tensor that holds a part for each layer ({name!r}): "
                "such an adapter cannot be cut; merge it into the base first"
            )
        if names.layer(name) == 0 and names.tail(name).startswith(known.first_only or ("\0",)):
            raise ArchitectureError(
                f"{adapter.folder} changes what stays with the first layer whatever is cut "
                f"({name!r}): such an adapter cannot be cut; merge it into the base first"
            )


def _lists(names: Iterable[str]) -> set[str]:
    """Paths in front of a name's first index, those of other towers left out."""
    found = (re.match(r"(.+?)\.(?:0|[1-9][0-9]{0,7})\.", name) for name in names)
    return {match[1] for match in found if match and not OTHER_TOWERS.search(match[1])}

"""Causal language models, loaded or taken from memory, with what the stages need to know."""

import contextlib
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from depthcut.architectures.table import ARCHITECTURES
from depthcut.checkpoint.folder import model_facts, open_checkpoint
from depthcut.errors import ArchitectureError, CheckpointError, MissingExtraError, SettingsError
from depthcut.launched import launched
from depthcut.model.devices import choose_device, choose_dtype
from depthcut.model.memory import total_memory_bytes
from depthcut.model.quiet import quiet_transformers
from depthcut.model.sources import locate
from depthcut.records import ModelFacts
from depthcut.settings import LoadSettings

_log = logging.getLogger(__name__)
_DIGEST_BYTES = 4096


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model on its device."""

    model: PreTrainedModel
    tokenizer: Tokenizer | None
    facts: ModelFacts
    folder: Path | None
    """Where it was loaded from; None: it was in memory."""
    runs_on: torch.device | None = None
    """Where, if its weights come and go (`streaming`, sharded training); None: where they are."""

    @property
    def device(self) -> torch.device:
        """Where the inputs go: the device of the input embeddings."""
        if self.runs_on is not None:
            return self.runs_on
        embeddings = self.model.get_input_embeddings()
        device = next(embeddings.parameters()).device
        if device.type != "meta":
            return device
        # accelerate keeps them elsewhere and brings them where they work.
        return torch.device(cast(Any, embeddings)._hf_hook.execution_device)

    @cached_property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, in order.

        Raises:
            ArchitectureError: They cannot be told from other modules.
        """
        return find_layers(self.model)

    @cached_property
    def backbone(self) -> nn.Module:
        """The decoder without its head: what a measurement of states runs."""
        return cast(nn.Module, getattr(self.model, self.model.base_model_prefix, self.model))


def load(source: str | Path, settings: LoadSettings, *, on_cpu: bool = False) -> LoadedModel:
    """A model from any source, in eval mode, with its tokenizer where it has one.

    Args:
        source: Where it is.
        settings: How it is loaded.
        on_cpu: The weights stay in main memory: somebody else brings them to the device.

    Raises:
        SourceError: The model cannot be found or fetched.
        CheckpointError: The folder is broken, or its tensors are not those of its config.
        SettingsError: The device is not there.
        MissingExtraError: 4-bit without bitsandbytes, or an embedded model without its package.
    """
    device = choose_device(settings.device)
    folder = locate(source, settings)
    checkpoint = open_checkpoint(folder)
    try:
        facts = model_facts(checkpoint, source=str(source))
    except ArchitectureError:  # cannot be sliced, and yet be measured
        facts = None
    named = getattr(torch, facts.dtype, None) if facts else None
    stored = named if isinstance(named, torch.dtype) and named.is_floating_point else None
    dtype = choose_dtype(settings.dtype, stored, device)
    runs_on, device = (device, torch.device("cpu")) if on_cpu else (None, device)
    if facts is not None and device is not None and device.type == "cpu":
        copies = launched().local_count if on_cpu else 1
        _refuse_larger_than_memory(folder, facts, dtype or stored, settings, copies)
    options: dict[str, Any] = {"dtype": dtype or "auto"}
    if device is None:
        options["device_map"] = "auto"
    elif device.type != "cpu" or settings.load_in_4bit:
        options["device_map"] = {"": str(device)}
    if settings.load_in_4bit:
        options["quantization_config"] = _four_bit(dtype or torch.float32)
    with quiet_transformers():
        model = _load(folder, settings, options)
        tokenizer = load_tokenizer(folder, settings)
    return LoadedModel(model, tokenizer, facts or facts_of(model, str(source)), folder, runs_on)


def from_memory(
    model: PreTrainedModel, tokenizer: Tokenizer | None, *, name: str = "in memory"
) -> LoadedModel:
    """A model that is there already, as it is: neither moved nor switched to eval mode."""
    return LoadedModel(model, tokenizer, facts_of(model, name), None)


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """A context without dropout and without gradients; the model's modes are restored."""
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def find_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a model: where the table says, else the only list of their number.

    Raises:
        ArchitectureError: No such list, or several.
    """
    known = ARCHITECTURES.get(model.config.model_type)
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    for stack in known.stacks if known is not None else ():
        with contextlib.suppress(AttributeError):
            found = model.get_submodule(stack)
            if isinstance(found, nn.ModuleList) and len(found) == count:
                return found
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    }
    if len(lists) != 1:
        among = f"several lists of {count}: {', '.join(lists)}" if lists else f"no list of {count}"
        raise ArchitectureError(
            f"cannot find the decoder layers of model type {model.config.model_type!r}: {among}"
        )
    return next(iter(lists.values()))


def facts_of(model: PreTrainedModel, source: str) -> ModelFacts:
    """What a model in memory is; its digest covers the config and the start of every tensor.

    Raises:
        SettingsError: Some of its tensors are not in memory.
    """
    digest = hashlib.sha256()
    config = model.config.to_dict()
    for volatile in ("_name_or_path", "transformers_version"):
        config.pop(volatile, None)
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    sizes: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        dtype = str(parameter.dtype).removeprefix("torch.")
        sizes[dtype] += parameter.numel()
        digest.update(json.dumps([name, dtype, list(parameter.shape)]).encode())
        if parameter.is_meta:
            raise SettingsError(
                f"{name} of the model {source} is not in memory: give the model by its folder or "
                "hub id, with --device map"
            )
        start = parameter.detach().flatten()[: _DIGEST_BYTES // parameter.element_size()]
        digest.update(start.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    layers = tuple(_parameters(layer) for layer in find_layers(model))
    return ModelFacts(
        source=source,
        digest=digest.hexdigest(),
        model_type=model.config.model_type,
        layers=len(layers),
        hidden_size=model.config.get_text_config().hidden_size,
        dtype=sizes.most_common(1)[0][0],
        layer_parameters=layers,
        other_parameters=_parameters(model) - sum(layers),
        weight_bytes=sum(each.numel() * each.element_size() for each in model.parameters()),
    )


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _four_bit(compute: torch.dtype) -> Any:
    from importlib.util import find_spec

    if find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "heal", "--load-in-4bit")
    import transformers

    config: Any = transformers.BitsAndBytesConfig
    return config(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_use_double_quant=True,
    )


def _load(folder: Path, settings: LoadSettings, options: dict[str, Any]) -> PreTrainedModel:
    loader: Any = AutoModelForCausalLM
    try:
        model, report = loader.from_pretrained(
            folder,
            trust_remote_code=settings.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except torch.OutOfMemoryError as error:
        raise SettingsError(
            f"{folder} does not fit the device {settings.device}: choose another --device, "
            "a smaller --dtype or --load-in-4bit; a survey can read it layer by layer: --stream"
        ) from error
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:400]
        raise CheckpointError(f"transformers cannot load {folder}: {reason}") from error
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(
            f"{folder} lacks {len(missing)} tensors of its model, such as {missing[0]}: "
            "get the whole checkpoint"
        )
    if unexpected := sorted(report["unexpected_keys"]):
        _log.warning(
            "%s holds %d tensors that its model does not use, such as %s",
            folder,
            len(unexpected),
            unexpected[0],
        )
    return cast(PreTrainedModel, model.eval())


def _refuse_larger_than_memory(
    folder: Path,
    facts: ModelFacts,
    dtype: torch.dtype | None,
    settings: LoadSettings,
    copies: int,
) -> None:
    """Raise SettingsError where no waiting would make room for the weights."""
    if dtype is None or settings.load_in_4bit:
        return
    needed = (sum(facts.layer_parameters) + facts.other_parameters) * dtype.itemsize
    there = total_memory_bytes()
    if copies > 1 and needed * copies > there:
        raise SettingsError(
            f"{folder} takes {needed / 1e9:.1f} GB for each of {copies} processes, and this "
            f"machine has {there / 1e9:.1f} GB: start fewer of them"
        )
    if needed > there:
        raise SettingsError(
            f"{folder} takes {needed / 1e9:.1f} GB in {str(dtype).removeprefix('torch.')}, and "
            f"this machine has {there / 1e9:.1f} GB: choose another --device, a smaller --dtype or "
            "--load-in-4bit; a survey can read it layer by layer: --stream"
        )


def load_tokenizer(folder: Path, settings: LoadSettings) -> Tokenizer | None:
    """The tokenizer of a checkpoint folder; None: it has none.

    Raises:
        CheckpointError: It cannot be loaded.
    """
    names = {path.name for path in folder.iterdir()}
    if not names & {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json"}:
        return None
    try:
        found = AutoTokenizer.from_pretrained(folder, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:400]
        raise CheckpointError(
            f"transformers cannot load the tokenizer of {folder}: {reason}"
        ) from error
    return cast(Tokenizer, found)

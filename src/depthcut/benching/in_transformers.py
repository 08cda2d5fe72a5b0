"""Models in transformers: its own forward pass and cache, with no kernels of other packages."""

import inspect
import time
from collections.abc import Collection, Iterator
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from depthcut.benching.engine import Prompts, Run
from depthcut.benching.work import Weight, Work, work_of
from depthcut.model.loading import LoadedModel, from_memory, in_eval_mode
from depthcut.model.loading import load as load_model
from depthcut.model.positions import learned_positions
from depthcut.records import ModelFacts
from depthcut.settings import BenchSettings, LoadSettings

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_VISITED = ("num_experts_per_tok", "moe_top_k", "moe_k", "top_k_experts")


def open_model(
    source: str | Path | PreTrainedModel,
    settings: BenchSettings,
    load: LoadSettings,
    among: int = 1,
) -> "InTransformers":
    """A model loaded by transformers, or taken from memory as it is.

    Raises:
        DepthcutError: As loading a model does.
    """
    if isinstance(source, PreTrainedModel):
        return InTransformers(from_memory(source, None), settings.threads)
    return InTransformers(load_model(source, load), settings.threads)


class InTransformers:
    """A model in transformers; `threads` holds for all of torch until it is closed."""

    def __init__(self, loaded: LoadedModel, threads: int | None = None) -> None:
        self.loaded = loaded
        self._threads_before = torch.get_num_threads()
        if threads is not None:
            torch.set_num_threads(threads)

    @property
    def facts(self) -> ModelFacts:
        return self.loaded.facts

    @cached_property
    def work(self) -> Work:
        return work_of(_weights(self.loaded.model), expert_share=_expert_share(self.loaded.model))

    @cached_property
    def weight_bytes(self) -> int:
        return sum(_size_bytes(parameter) for parameter in self.loaded.model.parameters())

    @property
    def vocabulary(self) -> int:
        return cast(nn.Embedding, self.loaded.model.get_input_embeddings()).num_embeddings

    @property
    def positions(self) -> int | None:
        return learned_positions(self.loaded)

    @property
    def device(self) -> str:
        names = [torch.cuda.get_device_name(index) for index in self.gpus]
        return ", ".join(dict.fromkeys(names)) or self.loaded.device.type

    @cached_property
    def gpus(self) -> tuple[int, ...]:
        places = {parameter.device for parameter in self.loaded.model.parameters()}
        return tuple(sorted(place.index or 0 for place in places if place.type == "cuda"))

    @property
    def threads(self) -> int | None:
        return torch.get_num_threads() if self.loaded.device.type == "cpu" else None

    @property
    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in ("transformers", "torch")}

    def once(self, prompts: Prompts, new_tokens: int) -> Run:
        ids = torch.tensor(prompts, device=self.loaded.device)
        before = self._start_peak()
        with in_eval_mode(self.loaded.model):
            prefill_seconds, decode_seconds, output = self._timed(ids, new_tokens)
        device_bytes = None if before is None else self._on_gpus() + self._peak() - before
        return Run(prefill_seconds, decode_seconds, _cache_bytes(output), device_bytes)

    def close(self) -> None:
        torch.set_num_threads(self._threads_before)

    def _timed(self, ids: Tensor, new_tokens: int) -> tuple[float, float, ModelOutput]:
        model, parameters = self.loaded.model, _parameters(self.loaded.model)
        last = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        argument = "cache" if "cache" in parameters else "past_key_values"
        self._wait()
        started = time.perf_counter()
        output = model(input_ids=ids, use_cache=True, **last)
        token = output.logits[:, -1:].argmax(-1)
        self._wait()
        prefilled = time.perf_counter()
        for _ in range(new_tokens - 1):
            output = model(input_ids=token, use_cache=True, **{argument: _cache(output)})
            token = output.logits[:, -1:].argmax(-1)
        self._wait()
        return prefilled - started, time.perf_counter() - prefilled, output

    def _wait(self) -> None:
        if self.gpus:
            for index in range(torch.cuda.device_count()):
                torch.cuda.synchronize(index)
        elif self.loaded.device.type == "mps":
            torch.mps.synchronize()

    def _start_peak(self) -> int | None:
        for index in self.gpus:
            torch.cuda.reset_peak_memory_stats(index)
        return sum(map(torch.cuda.memory_allocated, self.gpus)) if self.gpus else None

    def _peak(self) -> int:
        return sum(map(torch.cuda.max_memory_allocated, self.gpus))

    def _on_gpus(self) -> int:
        tensors = [*self.loaded.model.parameters(), *self.loaded.model.buffers()]
        return sum(t.numel() * t.element_size() for t in tensors if t.device.type == "cuda")


def _parameters(model: nn.Module) -> Collection[str]:
    return inspect.signature(model.forward).parameters


def _cache(output: ModelOutput) -> object:
    """transformers 5 renames it on its way."""
    return output["cache" if "cache" in output else "past_key_values"]


def _cache_bytes(output: ModelOutput) -> int | None:
    """Bytes of the tensors that the layers of a cache hold."""
    layers = getattr(_cache(output), "layers", None)
    if not layers:
        return None
    held = [value for layer in layers for value in vars(layer).values()]
    tensors = [value for value in held if isinstance(value, Tensor) and value.dim() > 1]
    return sum(each.numel() * each.element_size() for each in tensors) or None


def _weights(model: PreTrainedModel) -> Iterator[Weight]:
    """Every parameter once; one that is both, table and head, is a head."""
    output = cast(Any, model).get_output_embeddings()
    heads = {id(each) for each in output.parameters()} if output is not None else set()
    tables = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    for name, parameter in model.named_parameters():
        packed: Any = getattr(parameter, "quant_state", None)
        count = parameter.numel() if packed is None else packed.shape.numel()
        looked_up, head = id(parameter) in tables, id(parameter) in heads
        yield Weight(name, count, _size_bytes(parameter), looked_up=looked_up, head=head)


def _size_bytes(parameter: Tensor) -> int:
    return parameter.numel() * parameter.element_size()


def _expert_share(model: PreTrainedModel) -> float:
    config = model.config.get_text_config(decoder=True)
    counts = [
        next((n for key in keys if isinstance(n := getattr(config, key, None), int) and n), None)
        for keys in (_VISITED, _EXPERTS)
    ]
    visited, there = counts
    return visited / there if visited and there else 1.0

"""Models in vLLM, on one NVIDIA or AMD GPU.

Written against vLLM's public interface (`LLM`, `SamplingParams`) and not run by this project's
tests, which have no GPU: they check what comes before vLLM is called, and how it is called.
"""

import gc
import importlib
import re
import time
from collections.abc import Iterator
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthcut.benching.engine import Prompts, Run
from depthcut.benching.work import Weight, Work, work_of
from depthcut.checkpoint.folder import Checkpoint, model_facts, open_checkpoint
from depthcut.errors import CheckpointError, SettingsError
from depthcut.model.sources import locate
from depthcut.records import ModelFacts
from depthcut.settings import BenchSettings, LoadSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TABLE = re.compile(
    r"(?:^|\.)(?:embed_tokens|embed_positions|embed_in|wte|wpe|word_embeddings|tok_embeddings)\."
    r"weight$"
)
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output)\.weight$")
_MEMORY_SHARE = 0.9
"""Of the GPU, for all models together: what vLLM takes by itself for one."""


def open_model(
    source: "str | Path | PreTrainedModel",
    settings: BenchSettings,
    load: LoadSettings,
    among: int = 1,
) -> "InVllm":
    """A model in vLLM.

    Args:
        among: How many models share the GPU.

    Raises:
        SettingsError: vLLM is not installed, there is no GPU, or an option means nothing to it.
        DepthcutError: As finding a model does.
        CheckpointError: vLLM cannot load it.
    """
    if find_spec("vllm") is None:
        raise SettingsError("--engine vllm needs the package vllm and a GPU: pip install vllm")
    if not _has_gpu():
        raise SettingsError("--engine vllm needs a GPU, and torch sees none here")
    if not isinstance(source, str | Path):
        raise SettingsError("--engine vllm loads models itself: name a folder or a hub id")
    _refuse_meaningless(settings, load)
    folder = locate(source, load)
    options: dict[str, Any] = {
        "model": str(folder),
        "dtype": load.dtype,
        "trust_remote_code": load.trust_remote_code,
        "skip_tokenizer_init": True,
        "enable_prefix_caching": False,  # each round would find the prompts of the last
        "max_model_len": settings.prompt_tokens + settings.new_tokens,
        "max_num_seqs": max(settings.batch_sizes),
        "gpu_memory_utilization": _MEMORY_SHARE / among,
        "seed": 0,
    }
    try:
        engine = importlib.import_module("vllm").LLM(**options)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:400]
        raise CheckpointError(f"vLLM cannot load {folder}: {reason}") from error
    return InVllm(engine, open_checkpoint(folder), str(source))


class InVllm:
    """A model in vLLM."""

    def __init__(self, engine: Any, checkpoint: Checkpoint, source: str) -> None:
        self._engine, self._checkpoint, self._source = engine, checkpoint, source

    @cached_property
    def facts(self) -> ModelFacts:
        return model_facts(self._checkpoint, source=self._source)

    @cached_property
    def work(self) -> Work:
        return work_of(_weights(self._checkpoint), expert_share=_expert_share(self._checkpoint))

    @property
    def weight_bytes(self) -> int:
        return sum(each.size_bytes for each in _weights(self._checkpoint))

    @property
    def vocabulary(self) -> int:
        found = self._checkpoint.decoder_config.get("vocab_size")
        if type(found) is not int:
            raise CheckpointError(f"{self._checkpoint.folder}: config.json has no vocab_size")
        return found

    @property
    def positions(self) -> int | None:
        found = self._checkpoint.decoder_config.get("max_position_embeddings")
        return found if type(found) is int else None

    @property
    def device(self) -> str:
        import torch

        return torch.cuda.get_device_name(0)

    @property
    def gpus(self) -> tuple[int, ...]:
        return (0,)

    @property
    def threads(self) -> int | None:
        return None

    @property
    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in ("vllm", "torch")}

    def once(self, prompts: Prompts, new_tokens: int) -> Run:
        """Timed twice, to the first token and to the last: what lies between is decoding."""
        to_first = self._seconds(prompts, 1)
        to_last = self._seconds(prompts, new_tokens)
        # Where decoding is so short that noise hides it, it is not less than nothing.
        return Run(to_first, max(to_last - to_first, 1e-9), None, None)

    def close(self) -> None:
        self._engine = None
        gc.collect()

    def _seconds(self, prompts: Prompts, new_tokens: int) -> float:
        sampling = importlib.import_module("vllm").SamplingParams(
            temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False
        )
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        started = time.perf_counter()
        self._engine.generate(asked, sampling, use_tqdm=False)
        return time.perf_counter() - started


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _refuse_meaningless(settings: BenchSettings, load: LoadSettings) -> None:
    if settings.threads is not None:
        raise SettingsError("--threads means nothing to --engine vllm: leave it out")
    if load.load_in_4bit:
        raise SettingsError("--load-in-4bit means nothing to --engine vllm: leave it out")
    if load.device not in ("auto", "cuda"):
        raise SettingsError(
            f"--device {load.device} means nothing to --engine vllm: it takes the first GPU that "
            "CUDA_VISIBLE_DEVICES leaves it"
        )


def _weights(checkpoint: Checkpoint) -> Iterator[Weight]:
    """Where a checkpoint has no head of its own, the table of tokens is the head."""
    own_head = any(_HEAD.search(name) for name in checkpoint.tensors)
    for name, entry in checkpoint.tensors.items():
        table = _TABLE.search(name) is not None
        of_tokens = table and not name.endswith(("positions.weight", "wpe.weight"))
        head = _HEAD.search(name) is not None if own_head else of_tokens
        yield Weight(name, entry.elements, entry.size_bytes, looked_up=table, head=head)


def _expert_share(checkpoint: Checkpoint) -> float:
    config = checkpoint.decoder_config
    counts = [
        next((n for key in keys if type(n := config.get(key)) is int and n), 0)
        for keys in (
            ("num_experts_per_tok", "moe_top_k"),
            ("num_local_experts", "num_experts", "n_routed_experts"),
        )
    ]
    visited, there = counts
    return visited / there if visited and there else 1.0

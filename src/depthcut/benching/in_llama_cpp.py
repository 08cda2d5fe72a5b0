"""GGUF files in llama.cpp, by the plain functions of llama-cpp-python."""

import ctypes
import importlib
import math
import time
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from depthcut.benching.engine import Prompts, Run
from depthcut.benching.machine import usable_threads
from depthcut.benching.work import Weight, Work, work_of
from depthcut.errors import CheckpointError, MissingExtraError, SettingsError, SourceError
from depthcut.gguf.file import Gguf, read_gguf
from depthcut.gguf.model import gguf_facts
from depthcut.model.sources import gguf_file
from depthcut.records import ModelFacts
from depthcut.settings import BenchSettings, LoadSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BATCH_TOKENS = 2048
"""Tokens that one call may bring; llama.cpp computes 512 of them at a time, its default."""
_ROOM_TOKENS = 256
"""llama.cpp rounds a sequence's room up to a multiple of it."""
_ERROR = 4
"""The level of its messages that say why something went wrong."""
_TABLES = ("token_embd.weight", "position_embd.weight", "token_types.weight")


def open_model(
    source: "str | Path | PreTrainedModel",
    settings: BenchSettings,
    load: LoadSettings,
    among: int = 1,
) -> "InLlamaCpp":
    """A GGUF file in llama.cpp.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
        SettingsError: The source is no GGUF file, or an option means nothing to llama.cpp.
        SourceError: No such file.
        CheckpointError: llama.cpp cannot load it.
        ArchitectureError: depthcut does not know its architecture.
    """
    if find_spec("llama_cpp") is None:
        raise MissingExtraError("llama-cpp-python", "bench", "--engine llama.cpp")
    _refuse_meaningless(load)
    file = None if not isinstance(source, str | Path) else gguf_file(source)
    if file is None:
        raise _no_gguf(source)
    on_gpu = _on_gpu(load.device)
    threads = usable_threads() if settings.threads is None else settings.threads
    return InLlamaCpp(file, str(source), threads=threads, on_gpu=on_gpu)


class InLlamaCpp:
    """A model in llama.cpp; one context at a time, made anew where a run needs another size."""

    def __init__(self, file: Path, source: str, *, threads: int, on_gpu: bool) -> None:
        self._gguf = read_gguf(file)
        self._source, self._threads, self._on_gpu = source, threads, on_gpu
        self._library, self._log = _library(), _Log()
        parameters = self._library.llama_model_default_params()
        parameters.n_gpu_layers = -1 if on_gpu else 0
        with self._log:
            self._model = self._library.llama_model_load_from_file(str(file).encode(), parameters)
        if not self._model:
            raise CheckpointError(f"llama.cpp cannot load {file}: {self._log.reason}")
        self._context: Any = None
        self._size = (0, 0)

    @cached_property
    def facts(self) -> ModelFacts:
        return gguf_facts(self._gguf.file, source=self._source)

    @cached_property
    def work(self) -> Work:
        return work_of(_weights(self._gguf), expert_share=_expert_share(self._gguf))

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self._gguf.tensors)

    @property
    def vocabulary(self) -> int:
        words = self._library.llama_model_get_vocab(self._model)
        return int(self._library.llama_vocab_n_tokens(words))

    @property
    def positions(self) -> int | None:
        """Of a model with an embedding for each: llama.cpp would read beyond its table."""
        if not any(tensor.name == "position_embd.weight" for tensor in self._gguf.tensors):
            return None
        return int(self._library.llama_model_n_ctx_train(self._model))

    @property
    def device(self) -> str:
        return "GPU" if self._on_gpu else "cpu"

    @property
    def gpus(self) -> tuple[int, ...]:
        if not self._on_gpu:
            return ()
        import torch

        return tuple(range(torch.cuda.device_count()))

    @property
    def threads(self) -> int | None:
        return None if self._on_gpu else self._threads

    @property
    def versions(self) -> dict[str, str]:
        return {"llama-cpp-python": version("llama-cpp-python")}

    def once(self, prompts: Prompts, new_tokens: int) -> Run:
        library, context = self._library, self._fitting(prompts, new_tokens)
        library.llama_memory_clear(library.llama_get_memory(context), False)
        length = len(prompts[0])
        read = [
            _Token(token, place, number, wanted=place == length - 1)
            for number, prompt in enumerate(prompts)
            for place, token in enumerate(prompt)
        ]
        parts = [read[at : at + _BATCH_TOKENS] for at in range(0, len(read), _BATCH_TOKENS)]
        batches = [library.llama_batch_init(len(part), 0, 1) for part in (*parts, prompts)]
        *reading, writing = batches
        try:
            for batch, part in zip(reading, parts, strict=True):
                _fill(batch, part)
            started = time.perf_counter()
            tokens = self._decoded(context, reading)
            prefilled = time.perf_counter()
            for place in range(length, length + new_tokens - 1):
                _fill(writing, [_Token(each, place, n) for n, each in enumerate(tokens)])
                tokens = self._decoded(context, [writing])
            stopped = time.perf_counter()
        finally:
            for batch in batches:
                library.llama_batch_free(batch)
        cache_bytes = sum(
            int(library.llama_state_seq_get_size(context, number)) for number in range(len(prompts))
        )
        return Run(prefilled - started, stopped - prefilled, cache_bytes, None)

    def close(self) -> None:
        if self._context is not None:
            self._library.llama_free(self._context)
        if self._model is not None:
            self._library.llama_model_free(self._model)
        self._context = self._model = None

    def _fitting(self, prompts: Prompts, new_tokens: int) -> Any:
        """A context with as many sequences and as much room for each, nothing more."""
        room = math.ceil((len(prompts[0]) + new_tokens) / _ROOM_TOKENS) * _ROOM_TOKENS
        if self._size == (len(prompts), room):
            return self._context
        if self._context is not None:
            self._library.llama_free(self._context)
            self._context, self._size = None, (0, 0)
        parameters = self._library.llama_context_default_params()
        parameters.n_seq_max = len(prompts)
        parameters.n_ctx = len(prompts) * room
        parameters.n_batch = _BATCH_TOKENS
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.offload_kqv = self._on_gpu
        with self._log:
            context = self._library.llama_init_from_model(self._model, parameters)
        if not context:
            raise SettingsError(
                f"llama.cpp has no room for {len(prompts)} sequences of {room} tokens "
                f"({self._log.reason}): lower --batch-sizes or --prompt-tokens"
            )
        self._context, self._size = context, (len(prompts), room)
        return context

    def _decoded(self, context: Any, batches: Sequence[Any]) -> list[int]:
        """The likeliest next token after each of the tokens that are marked, in their order."""
        found = []
        for batch in batches:
            if failed := self._library.llama_decode(context, batch):
                raise SettingsError(
                    f"llama.cpp could not run {self._source} (llama_decode: {failed}): lower "
                    "--batch-sizes or --prompt-tokens"
                )
            marked = [number for number in range(batch.n_tokens) if batch.logits[number]]
            found += [self._likeliest(context, number) for number in marked]
        return found

    def _likeliest(self, context: Any, number: int) -> int:
        row = self._library.llama_get_logits_ith(context, number)
        return int(np.ctypeslib.as_array(row, (self._width,)).argmax())

    @cached_property
    def _width(self) -> int:
        return self.vocabulary


class _Token(NamedTuple):
    """A token that a model reads."""

    token: int
    place: int
    sequence: int
    wanted: bool = True
    """Whether its next token is."""


def _fill(batch: Any, tokens: Sequence[_Token]) -> None:
    batch.n_tokens = len(tokens)
    for number, each in enumerate(tokens):
        batch.token[number], batch.pos[number] = each.token, each.place
        batch.n_seq_id[number], batch.seq_id[number][0] = 1, each.sequence
        batch.logits[number] = each.wanted


class _Log:
    """A context in which llama.cpp is quiet; what went wrong is kept."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        kind = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        self._callback = kind(self._note)

    def __enter__(self) -> None:
        self._lines.clear()
        _library().llama_log_set(self._callback, None)

    def __exit__(self, *_: object) -> None:
        _library().llama_log_set(_NOTHING, None)

    @property
    def reason(self) -> str:
        """What it said last, in one line."""
        return " ".join(" ".join(self._lines).split())[-300:] or "it gives no reason"

    def _note(self, level: int, text: bytes, _: object) -> None:
        if level == _ERROR:
            self._lines.append(text.decode("utf-8", "replace"))


_NOTHING = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(
    lambda _level, _text, _data: None
)


def _library() -> Any:
    """Its functions as ctypes has them: untyped."""
    return importlib.import_module("llama_cpp.llama_cpp")


def _no_gguf(source: object) -> SourceError | SettingsError:
    if isinstance(source, str | Path) and Path(source).suffix.lower() == ".gguf":
        return SourceError(f"no file {source}: name a GGUF file that is there")
    return SettingsError(
        f"--engine llama.cpp runs GGUF files, and {source} is none: cut one (depthcut slice "
        "model.gguf plan.json --out cut.gguf), or convert a checkpoint folder by llama.cpp's "
        "convert_hf_to_gguf.py"
    )


def _refuse_meaningless(load: LoadSettings) -> None:
    plain = LoadSettings(device=load.device)
    for name in load.__struct_fields__:
        if getattr(load, name) != getattr(plain, name):
            option = name.replace("_", "-")
            raise SettingsError(f"--{option} means nothing to --engine llama.cpp: leave it out")


def _on_gpu(device: str) -> bool:
    """Whether the layers go to a GPU: all of them, or none.

    Raises:
        SettingsError: A device that this build of llama.cpp does not have.
    """
    able = bool(_library().llama_supports_gpu_offload())
    if device in ("auto", "cpu"):
        return able and device == "auto"
    if device not in ("cuda", "mps"):
        raise SettingsError(
            f"--device {device} means nothing to --engine llama.cpp: it takes cpu, or all GPUs "
            "that CUDA_VISIBLE_DEVICES leaves it (cuda)"
        )
    if not able:
        raise SettingsError(
            f"--device {device}: the installed llama-cpp-python was built without a GPU; install "
            "a build with one, or leave --device out"
        )
    return True


def _weights(gguf: Gguf) -> list[Weight]:
    """Where a file has no head of its own, the table of tokens is the head."""
    own_head = any(tensor.name == "output.weight" for tensor in gguf.tensors)
    head = "output.weight" if own_head else "token_embd.weight"
    return [
        Weight(
            tensor.name,
            tensor.elements,
            tensor.size_bytes,
            looked_up=tensor.name in _TABLES,
            head=tensor.name == head,
        )
        for tensor in gguf.tensors
    ]


def _expert_share(gguf: Gguf) -> float:
    def number(key: str) -> int:
        name = gguf.metadata["general.architecture"].value
        entry = gguf.metadata.get(f"{name}.{key}")
        return entry.value if entry is not None and type(entry.value) is int else 0

    visited, there = number("expert_used_count"), number("expert_count")
    return visited / there if visited and there else 1.0

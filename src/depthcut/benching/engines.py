"""The engines by name; what one needs is imported when it is asked for, and not before."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from depthcut.benching.engine import Engine
from depthcut.settings import BenchSettings, EngineName, LoadSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Open(Protocol):
    """The function of an engine that opens a model."""

    def __call__(
        self,
        source: "str | Path | PreTrainedModel",
        settings: BenchSettings,
        load: LoadSettings,
        among: int = 1,
    ) -> Engine:
        """One of `among` models that are open at once."""


def _transformers() -> Open:
    from depthcut.benching.in_transformers import open_model

    return open_model


def _llama_cpp() -> Open:
    from depthcut.benching.in_llama_cpp import open_model

    return open_model


def _vllm() -> Open:
    from depthcut.benching.in_vllm import open_model

    return open_model


ENGINES: Mapping[EngineName, Callable[[], Open]] = {
    "transformers": _transformers,
    "llama.cpp": _llama_cpp,
    "vllm": _vllm,
}
"""Each gives the function that opens a model."""

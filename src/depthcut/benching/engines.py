"""The engines by name; what one needs is imported when it is asked for, and not before."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from depthcut.benching.engine import Engine
from depthcut.settings import BenchSettings, EngineName, LoadSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Open = Callable[["str | Path | PreTrainedModel", BenchSettings, LoadSettings], Engine]


def _transformers() -> Open:
    from depthcut.benching.in_transformers import open_model

    return open_model


ENGINES: Mapping[EngineName, Callable[[], Open]] = {"transformers": _transformers}
"""Each gives the function that opens a model."""

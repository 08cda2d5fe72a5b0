"""Models to be judged: known by what their files say, and loaded only once something is asked."""

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING

from depthcut.records import ModelFacts

if TYPE_CHECKING:
    from depthcut.model.loading import LoadedModel


class Candidate:
    """One model under the name that it is shown by."""

    def __init__(self, name: str, facts: ModelFacts, load: "Callable[[], LoadedModel]") -> None:
        self.name, self.facts = name, facts
        self._load = load
        self._loaded: LoadedModel | None = None

    @property
    def loaded(self) -> "LoadedModel":
        """The model, loaded the first time.

        Raises:
            DepthcutError: What loading raises.
        """
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def let_go(self) -> None:
        """Free its memory, until it is asked for again."""
        if self._loaded is None:
            return
        on_gpu = self._loaded.device.type == "cuda"
        self._loaded = None
        gc.collect()
        if on_gpu:
            import torch

            torch.cuda.empty_cache()

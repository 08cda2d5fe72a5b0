"""Models to be judged: known by what their files say, and loaded only once something is asked."""

import gc
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from depthcut.records import ModelFacts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from depthcut.model.loading import LoadedModel


class Candidate:
    """One model under the name that it is shown by."""

    def __init__(
        self,
        name: str,
        facts: ModelFacts,
        load: "Callable[[], LoadedModel]",
        *,
        folder: Path | None = None,
        reads: str = "",
    ) -> None:
        """Nothing is loaded.

        Args:
            name: To show.
            facts: What its files, or the model in memory, say of it.
            load: Loads it.
            folder: Where its files lie; None: it is in memory alone.
            reads: Digest of what makes text into tokens and prompts: tokenizer, chat template.
        """
        self.name, self.facts, self.folder = name, facts, folder
        self.digest = f"{facts.digest} {reads}"
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


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase | None") -> str:
    """SHA-256 of what a tokenizer in memory says of itself."""
    if tokenizer is None:
        return ""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    said = backend.to_str() if backend is not None else str(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(f"{said}\0{tokenizer.chat_template}".encode()).hexdigest()

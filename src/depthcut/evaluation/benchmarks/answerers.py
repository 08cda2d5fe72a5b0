"""What answers questions: a model in transformers, or vLLM, in the form that lm-eval asks."""

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from depthcut.errors import CheckpointError, SettingsError
from depthcut.launched import launched
from depthcut.model.batching import fitting_batch_size
from depthcut.model.loading import LoadedModel
from depthcut.model.ranks import Ranks
from depthcut.progress import progress
from depthcut.settings import EvaluateSettings, LoadSettings

_CHARACTERS_PER_TOKEN = 2
"""Fewer than the texts of tasks have, so that what fits is not overrated."""


class InTransformers(HFLM):  # type: ignore[misc]
    """lm-eval's own model of transformers, with depthcut's progress, batches and processes."""

    def __init__(
        self, loaded: LoadedModel, title: str, settings: EvaluateSettings, ranks: Ranks
    ) -> None:
        super().__init__(
            pretrained=loaded.model,
            tokenizer=copy.deepcopy(loaded.tokenizer),  # it may get a padding token
            batch_size=settings.batch_size or 1,
        )
        self._device = loaded.device
        self._rank, self._world_size = ranks.rank, ranks.count
        self._loaded, self._ranks = loaded, ranks
        self._title = f"evaluate: {title}"
        self._chosen, self._advance = settings.batch_size, _say_nothing

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Every answer is kept, and counted."""
        answerer = self

        class Counting:
            def add_partial(self, attr: str, req: Any, res: Any) -> None:
                answerer._refuse_no_number(res)
                cache_hook.add_partial(attr, req, res)
                answerer._advance(1)

        self.cache_hook = Counting()

    def _refuse_no_number(self, answer: Any) -> None:
        """Of choices that are all NaN the first would count as the model's answer."""
        likelihood = answer[0] if isinstance(answer, tuple | list) else answer
        if isinstance(likelihood, float) and math.isnan(likelihood):
            raise CheckpointError(
                f"a likelihood that {self._loaded.facts.source} gives is not a number: its weights "
                "are broken, or overflow in this type; try --dtype float32"
            )

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        with self._counted(requests):
            return cast(list[tuple[float, bool]], super().loglikelihood(requests, True))

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        with self._counted(requests):
            return cast(list[float], super().loglikelihood_rolling(requests, True))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        with self._counted(requests):
            return cast(list[str], super().generate_until(requests, True))

    def all_gather(self, tensor: Tensor) -> Tensor:
        return torch.stack(self._ranks.everywhere(tensor.cpu())).reshape(-1)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        said = self._ranks.everywhere(obj)
        return said if self.rank == dst else None

    def barrier(self) -> None:
        self._ranks.everywhere(None)

    @contextlib.contextmanager
    def _counted(self, requests: Sequence[Instance]) -> Iterator[None]:
        self.batch_size_per_gpu = self._chosen or self._fitting(requests)
        with progress(self._title, len(requests), unit="answers") as advance:
            self._advance = advance
            try:
                yield
            finally:
                self._advance = _say_nothing

    def _fitting(self, requests: Sequence[Instance]) -> int:
        """Requests of the longest kind that fit in memory at once, with their logits thrice."""
        texts = ("".join(map(str, request.args)) for request in requests)
        longest = max((len(text) for text in texts), default=1) // _CHARACTERS_PER_TOKEN + 1
        width = int(self._loaded.model.config.get_text_config().vocab_size)
        element = next(self._loaded.model.parameters()).element_size()
        return fitting_batch_size(
            self._loaded, min(longest, self.max_length), bytes_per_token=3 * width * element
        )


def in_vllm(folder: Path | None, settings: EvaluateSettings, load: LoadSettings) -> LM:
    """lm-eval's own model of vLLM, which loads the checkpoint by itself. Never run by us.

    Raises:
        SettingsError: vLLM is not installed, or something is asked that it does not take here.
    """
    try:
        import vllm  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            "--backend vllm needs vLLM and a GPU: pip install vllm, or leave --backend out"
        ) from error
    if folder is None:
        raise SettingsError("--backend vllm reads a checkpoint folder: save the model first")
    if launched().count > 1 or load.load_in_4bit or load.device not in ("auto", "cuda"):
        raise SettingsError(
            "--backend vllm runs in one process on the GPUs that it finds, with the weights as "
            "they are: leave accelerate launch, --device and --load-in-4bit out"
        )
    return get_model("vllm")(
        pretrained=str(folder),
        dtype=load.dtype,
        trust_remote_code=load.trust_remote_code,
        batch_size=settings.batch_size or "auto",
    )


def _say_nothing(amount: float, note: str = "") -> None:
    pass

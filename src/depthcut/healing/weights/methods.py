"""Ways to train: each one context in which some weights of a model can, and what they become."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from depthcut.checkpoint.headers import TensorEntry
from depthcut.healing.weights.targets import Targets
from depthcut.healing.weights.whole import as_stored, opened
from depthcut.model.loading import LoadedModel
from depthcut.model.stored_weights import add_to_weight, write_weight
from depthcut.settings import HealMethod, HealSettings


@dataclass(frozen=True)
class Trainee:
    """A model of which some weights train."""

    model: nn.Module
    """As it is run."""
    learned: Callable[[], Iterator[tuple[str, Tensor]]]
    """What training came to, by names of the checkpoint's tensors, one layer at a time."""
    put: Callable[[TensorEntry, Tensor], None]
    """Brings that into the checkpoint's file."""
    save_adapter: Callable[[Path], object] | None = None


@contextlib.contextmanager
def low_rank(loaded: LoadedModel, settings: HealSettings, chosen: Targets) -> Iterator[Trainee]:
    """LoRA (arXiv:2106.09685) on the linear layers; on a 4-bit base QLoRA (arXiv:2305.14314),
    whose rounding never reaches the result."""
    from depthcut.healing.weights.adapters import adapted, weight_deltas

    with adapted(loaded, settings, chosen) as wrapped:
        yield Trainee(
            wrapped,
            learned=lambda: weight_deltas(wrapped),
            put=add_to_weight,
            save_adapter=lambda folder: wrapped.save_pretrained(
                str(folder), save_embedding_layers=False
            ),
        )


@contextlib.contextmanager
def whole_weights(
    loaded: LoadedModel, settings: HealSettings, chosen: Targets
) -> Iterator[Trainee]:
    """All weights; or those of some layers, and of the head: by default the last ones, which Lu et
    al. (arXiv:2411.15558) find better and cheaper than LoRA after cutting the last layers."""
    with opened(loaded, None if settings.method == "full" else chosen) as weights:
        yield Trainee(loaded.model, lambda: as_stored(loaded, weights), write_weight)


Method = Callable[[LoadedModel, HealSettings, Targets], AbstractContextManager[Trainee]]

METHODS: dict[HealMethod, Method] = {
    "lora": low_rank,
    "qlora": low_rank,
    "full": whole_weights,
    "partial": whole_weights,
}
"""By the name that --method takes. At the end of each the model has its own modules again."""

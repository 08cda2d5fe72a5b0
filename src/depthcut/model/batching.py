"""How many sequences fit in a forward pass."""

from typing import TYPE_CHECKING

from depthcut.model.memory import free_memory_bytes

if TYPE_CHECKING:
    from depthcut.model.loading import LoadedModel

_SHARE = 0.5
"""Of the free memory that a batch may take: the rest is for what nobody counts."""


def fitting_batch_size(
    loaded: "LoadedModel",
    context: int,
    *,
    bytes_per_token: int,
    reserved_bytes: int = 0,
    most: int = 32,
) -> int:
    """The largest power of two of sequences that half of the free memory holds, at least 1.

    Args:
        loaded: The model, already on its device.
        context: Tokens of each sequence.
        bytes_per_token: What the caller keeps for each token, over and above the activations of
            one layer, which are counted here.
        reserved_bytes: Of the free memory, for what is yet to be allocated whatever the size.
        most: Never more than this.
    """
    each = int(context * (activation_bytes(loaded) + bytes_per_token))
    free = max(0, free_memory_bytes(loaded.device) - reserved_bytes)
    fitting = int(free * _SHARE) // max(each, 1)
    return 1 << (max(1, min(fitting, most)).bit_length() - 1)


def activation_bytes(loaded: "LoadedModel") -> int:
    """What one layer computes on its way, for each token."""
    config = loaded.model.config.get_text_config()
    wide = int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    element_bytes = next(loaded.model.parameters()).element_size()
    return int((4 * wide + 16 * config.hidden_size) * max(element_bytes, 2))

"""Rules by which several keys of a config say together what each layer is, by model family."""

from collections.abc import Iterator

from depthcut.checkpoint.fields import Config, Layout, Values, layer_indices, whole_number
from depthcut.errors import ArchitectureError


def positive(config: Config, key: str, default: int) -> int:
    """A number that divides.

    Raises:
        ArchitectureError: It is none, or not positive.
    """
    value = whole_number(config, key, default)
    if value is None or value < 1:
        raise ArchitectureError(f"config.json: {key} must be a positive number, found {value}")
    return value


def _is_sparse(config: Config, layers: int) -> Values:
    period = positive(config, "decoder_sparse_step", 1)
    dense = layer_indices(config, "mlp_only_layers", layers) or set()
    return [(layer + 1) % period == 0 and layer not in dense for layer in range(layers)]


def _as_exceptions(config: Config, sparse: Values) -> Iterator[Config]:
    for period in (positive(config, "decoder_sparse_step", 1), 1):
        dense = [
            layer for layer, value in enumerate(sparse) if (layer + 1) % period == 0 and not value
        ]
        offer = {**config, "mlp_only_layers": dense}
        yield offer if period != 1 else {**offer, "decoder_sparse_step": 1}


SPARSE_STEP = Layout(("decoder_sparse_step", "mlp_only_layers"), _is_sparse, _as_exceptions)
"""Every so-manieth layer has experts, except those listed (Qwen). Any cut can be said: where the
period no longer holds it becomes 1, and the list takes the rest."""

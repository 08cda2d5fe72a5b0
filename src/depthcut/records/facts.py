"""What a model and a text say of themselves, and numbers with their errors."""

from depthcut.records.base import Record


class ModelFacts(Record, frozen=True, kw_only=True):
    """What a checkpoint says of itself, read from its config and headers."""

    source: str
    """As the user named it."""
    digest: str
    """Of the config, the tensor headers and the first bytes of each tensor."""
    model_type: str
    layers: int
    hidden_size: int
    dtype: str
    """Of most of the weights."""
    layer_parameters: tuple[int, ...]
    """Parameters of each layer, in order."""
    other_parameters: int
    """Embeddings, head, final norm; tied weights counted once."""
    weight_bytes: int

    @property
    def parameters(self) -> int:
        return sum(self.layer_parameters) + self.other_parameters


class TextFacts(Record, frozen=True, kw_only=True):
    """Which text was read."""

    source: str
    digest: str
    """SHA-256 of the source's bytes (local) or of its name and commit (hub)."""
    sequences: int
    tokens: int
    """Tokens that counted, padding not among them."""


class Estimate(Record, frozen=True, kw_only=True):
    """A mean and its standard error."""

    value: float
    stderr: float


def value_and_error(estimate: Estimate | None) -> tuple[float | None, float | None]:
    """Its two numbers for a table; None twice where there is none."""
    return (estimate.value, estimate.stderr) if estimate else (None, None)

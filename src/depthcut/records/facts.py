"""What a model and a text say of themselves, and numbers with their errors."""

from collections.abc import Sequence

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


class TextPart(Record, frozen=True, kw_only=True):
    """One of the texts that were read."""

    source: str
    """As the user named it, without its weight."""
    digest: str
    """SHA-256 of the source's bytes (local) or of its name and commit (hub)."""
    share: float
    """Of all tokens, as asked for. A text that ended early has less."""
    sequences: int
    tokens: int


class TextFacts(Record, frozen=True, kw_only=True):
    """Which text was read: one, or several in one order."""

    source: str
    """As the user named it; of several texts all names, each with its share of the tokens."""
    digest: str
    """One text's own; of several over theirs and their shares."""
    sequences: int
    tokens: int
    """Tokens that counted, padding not among them."""
    parts: tuple[TextPart, ...] = ()
    """The texts, in the order in which they were named."""
    order: bytes = b""
    """Which of several parts each sequence came from, one byte each."""

    @property
    def part_of_sequences(self) -> tuple[int, ...]:
        """For each sequence the index of its text in `parts`."""
        return tuple(self.order) or (0,) * self.sequences


def texts_in_words(parts: Sequence[TextPart]) -> str:
    """The names; of several with the share of the tokens that each came to."""
    if len(parts) == 1:
        return parts[0].source
    total = sum(part.tokens for part in parts)
    *names, last = (f"{part.source} ({part.tokens / total:.0%})" for part in parts)
    return f"{', '.join(names)} and {last}"


class Estimate(Record, frozen=True, kw_only=True):
    """A mean and its standard error."""

    value: float
    stderr: float


def value_and_error(estimate: Estimate | None) -> tuple[float | None, float | None]:
    """Its two numbers for a table; None twice where there is none."""
    return (estimate.value, estimate.stderr) if estimate else (None, None)

"""Several models, judged on the same text."""

from typing import TYPE_CHECKING, Literal

from depthcut.frames import Row, data_frame, html_table
from depthcut.records.base import Origin, Record
from depthcut.records.facts import Estimate, ModelFacts, TextFacts, value_and_error
from depthcut.records.tasks import TaskResults
from depthcut.settings import EvaluateSettings, LoadSettings

if TYPE_CHECKING:
    from pandas import DataFrame


class Degeneration(Record, frozen=True, kw_only=True):
    """What is wrong with a model's free text; means over prompts, errors over prompts."""

    tokens: Estimate
    """Length of a generation, in tokens."""
    unfinished: Estimate
    """Share of generations that did not end by themselves."""
    repetition: Estimate
    """rep-4: share of 4-grams of tokens that came before in the same generation
    (arXiv:1908.04319)."""
    distinct_1: float
    """Different tokens over all tokens, all generations together (arXiv:1510.03055)."""
    distinct_2: float
    """The same of pairs of tokens."""
    agreement: Estimate | None
    """Share of the first model's text that is kept, token by token in order: 1 - edit distance
    over the longer length; None for the first."""
    reference_perplexity: Estimate | None
    """Perplexity of the text under the first model, given the prompt; None where the models do
    not share a vocabulary."""


class TextQuality(Record, frozen=True, kw_only=True):
    """One model on one of several texts: the sequences of that text alone, out of those of all."""

    source: str
    """Of the text, as the user named it, without its weight."""
    loss: Estimate
    perplexity: Estimate
    bits_per_byte: Estimate
    loss_difference: Estimate | None = None
    """None for the first model, as the next two; else what `Comparison` says of all texts."""
    agreement: Estimate | None = None
    kl_divergence: Estimate | None = None


class ModelEvaluation(Record, frozen=True, kw_only=True):
    """One model, judged."""

    name: str
    model: ModelFacts
    loss: Estimate | None
    """Nats per predicted token, standard error over sequences; None, as the next two: no text."""
    perplexity: Estimate | None
    bits_per_byte: Estimate | None
    texts: tuple[TextQuality, ...] = ()
    """Of several texts each by itself, in their order; one of which fewer than two sequences were
    read has no error, and is left out. Empty where there is one text."""
    generations: tuple[str, ...]
    """One for each prompt, greedy."""
    degeneration: Degeneration | None = None
    """None: nothing was generated."""


class Comparison(Record, frozen=True, kw_only=True):
    """One model against the first, on the same tokens."""

    name: str
    loss_difference: Estimate
    """Nats per token, paired over sequences; positive: worse than the first."""
    agreement: Estimate
    """Share of tokens where both predict the same next token."""
    kl_divergence: Estimate
    """KL(first ‖ this) of the next-token distributions, nats per token."""


class Evaluation(Record, frozen=True, kw_only=True):
    """Several models judged on the same text; the first is the reference."""

    kind: Literal["evaluation"] = "evaluation"
    origin: Origin
    text: TextFacts | None
    """None: judged on no text."""
    settings: EvaluateSettings
    load: LoadSettings
    prompts: tuple[str, ...]
    models: tuple[ModelEvaluation, ...]
    comparisons: tuple[Comparison, ...]
    """For the second model and those after it."""
    tasks: TaskResults | None = None

    @property
    def by_text(self) -> tuple[tuple[TextQuality, ...], ...]:
        """For each of several texts how the models do on it, in their order."""
        return tuple(zip(*(each.texts for each in self.models), strict=True))

    def to_frame(self) -> "DataFrame":
        """One row for each model, and one for each model on each of several texts; needs pandas.

        The column text says which; "all" is all of several.
        """
        return data_frame(_EVALUATION_COLUMNS, self._judgements())

    def _repr_html_(self) -> str:
        read = f" on {self.text.tokens:,} tokens of {self.text.source}" if self.text else ""
        caption = f"Evaluation{read}"
        return html_table(caption, _EVALUATION_COLUMNS, self._judgements())

    def _judgements(self) -> list[Row]:
        compared = {each.name: each for each in self.comparisons}
        text = "all" if any(each.texts for each in self.models) else None
        if text is None and self.text:
            text = self.text.source
        return [
            *(_row(each, text, each, compared.get(each.name)) for each in self.models),
            *(
                _row(model, each.source, each, each)
                for on_text in self.by_text
                for model, each in zip(self.models, on_text, strict=True)
            ),
        ]


def _row(
    model: ModelEvaluation,
    text: str | None,
    quality: ModelEvaluation | TextQuality,
    against: Comparison | TextQuality | None,
) -> Row:
    return (
        model.name,
        text,
        model.model.layers,
        model.model.parameters,
        *value_and_error(quality.perplexity),
        _value(quality.bits_per_byte),
        *value_and_error(against.loss_difference if against else None),
        _value(against.agreement if against else None),
        _value(against.kl_divergence if against else None),
    )


def _value(estimate: Estimate | None) -> float | None:
    return value_and_error(estimate)[0]


_EVALUATION_COLUMNS = (
    "model",
    "text",
    "layers",
    "parameters",
    "perplexity",
    "perplexity stderr",
    "bits per byte",
    "loss difference",
    "loss difference stderr",
    "agreement",
    "KL divergence",
)

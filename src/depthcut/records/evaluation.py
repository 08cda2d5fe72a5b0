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


class ModelEvaluation(Record, frozen=True, kw_only=True):
    """One model, judged."""

    name: str
    model: ModelFacts
    loss: Estimate | None
    """Nats per predicted token, standard error over sequences; None, as the next two: no text."""
    perplexity: Estimate | None
    bits_per_byte: Estimate | None
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

    def to_frame(self) -> "DataFrame":
        """One row for each model; needs pandas."""
        return data_frame(_EVALUATION_COLUMNS, self._judgements())

    def _repr_html_(self) -> str:
        read = f" on {self.text.tokens:,} tokens of {self.text.source}" if self.text else ""
        caption = f"Evaluation{read}"
        return html_table(caption, _EVALUATION_COLUMNS, self._judgements())

    def _judgements(self) -> list[Row]:
        compared = {each.name: each for each in self.comparisons}
        rows: list[Row] = []
        for each in self.models:
            against = compared.get(each.name)
            rows.append(
                (
                    each.name,
                    each.model.layers,
                    each.model.parameters,
                    *value_and_error(each.perplexity),
                    each.bits_per_byte.value if each.bits_per_byte else None,
                    *value_and_error(against.loss_difference if against else None),
                    against.agreement.value if against else None,
                    against.kl_divergence.value if against else None,
                )
            )
        return rows


_EVALUATION_COLUMNS = (
    "model",
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

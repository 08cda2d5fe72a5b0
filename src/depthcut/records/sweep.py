"""Ways of choosing layers side by side: what each chose, what it took, what texts say of it."""

import math
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from depthcut.errors import RecordError, nearest
from depthcut.frames import Row, data_frame, html_table
from depthcut.records.base import Origin, Record
from depthcut.records.blocks import Block, layers_in_words
from depthcut.records.facts import Estimate, ModelFacts, TextFacts
from depthcut.settings import LoadSettings, SweepSettings

if TYPE_CHECKING:
    from pandas import DataFrame

Measure = Literal["loss", "kl"]


class Choice(Record, frozen=True, kw_only=True):
    """The layers that a way takes, and what it had taken until it knew."""

    removed: tuple[Block, ...]
    seconds: float
    forwards: float
    """Work in whole forward passes of the untouched model over the way's text."""

    @property
    def count(self) -> int:
        return sum(stop - start for start, stop in self.removed)


class Way(Record, frozen=True, kw_only=True):
    """One way of choosing layers."""

    name: str
    """As it was asked for: angular/last, kl-block:2, greedy, random:1."""
    kind: Literal["criterion", "search", "baseline"]
    """baseline: it looks at nothing."""
    paper: str
    tokens: int
    """Of the text that it chose by."""
    seconds: float
    """Of the survey that scored it, or of the search; others may share the survey."""
    forwards: float
    """Work in whole forward passes of the untouched model over that text."""
    choices: tuple[Choice, ...]
    """By number of removed layers, ascending; numbers that it cannot choose are missing."""

    def find(self, count: int) -> Choice | None:
        """Its choice of so many layers; None: it has none."""
        return next((each for each in self.choices if each.count == count), None)


class Judgement(Record, frozen=True, kw_only=True):
    """What a text says of a model without some layers. Means are over tokens."""

    removed: tuple[Block, ...]
    """() is the untouched model."""
    loss: Estimate
    """Next-token loss in nats."""
    perplexity: Estimate
    loss_difference: Estimate
    """To the untouched model, paired over sequences."""
    kl_divergence: Estimate
    """KL(untouched ‖ without the layers) in nats."""
    by_sequence: bytes
    """float32, little endian, (2, sequences): mean loss, mean KL divergence."""


class JudgedText(Record, frozen=True, kw_only=True):
    """A text that judged every choice."""

    text: TextFacts
    predicted: tuple[int, ...]
    """Predicted tokens of each sequence: what weighs its mean."""
    judgements: tuple[Judgement, ...]
    """The untouched model's first; each distinct choice once."""

    @property
    def name(self) -> str:
        """As it was asked for."""
        return self.text.source

    @property
    def untouched(self) -> Judgement:
        return self.judgements[0]

    def find(self, removed: Sequence[Block]) -> Judgement:
        """What it says of a choice.

        Raises:
            RecordError: It did not judge it.
        """
        for each in self.judgements:
            if each.removed == tuple(removed):
                return each
        raise RecordError(f"{self.name} did not judge the model without {layers_in_words(removed)}")

    def difference(
        self, first: Judgement, second: Judgement, measure: Measure = "loss"
    ) -> Estimate:
        """One choice's loss or divergence minus another's, with the paired standard error."""
        sides = [_column(each, measure, len(self.predicted)) for each in (first, second)]
        return ratio_estimate(
            [one - other for one, other in zip(*sides, strict=True)], self.predicted
        )


class Sweep(Record, frozen=True, kw_only=True):
    """Every way of choosing at every number of layers, on every text that judged."""

    kind: Literal["sweep"] = "sweep"
    origin: Origin
    model: ModelFacts
    settings: SweepSettings
    load: LoadSettings
    calibration: str
    """The text that the ways chose by."""
    calibration_digest: str
    ways: tuple[Way, ...]
    judged: tuple[JudgedText, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of removed layers, ascending."""
        return tuple(sorted({choice.count for way in self.ways for choice in way.choices}))

    def way(self, name: str) -> Way:
        """The way of this name.

        Raises:
            RecordError: The sweep has none.
        """
        known = [way.name for way in self.ways]
        if name not in known:
            raise RecordError(
                f"no way {name!r} in the sweep{nearest(name, known)}; it has {', '.join(known)}"
            )
        return self.ways[known.index(name)]

    def to_frame(self) -> "DataFrame":
        """One row for each text, way and number of removed layers; needs pandas."""
        return data_frame(SWEEP_COLUMNS, self.rows())

    def rows(self) -> list[Row]:
        """All numbers, a row for each text, way and number of removed layers: SWEEP_COLUMNS."""
        found: list[Row] = []
        for judged in self.judged:
            for way in self.ways:
                for choice in way.choices:
                    said = judged.find(choice.removed)
                    estimates = (
                        said.loss,
                        said.perplexity,
                        said.loss_difference,
                        said.kl_divergence,
                    )
                    numbers = [part for each in estimates for part in (each.value, each.stderr)]
                    words = layers_in_words(choice.removed).rpartition(" (")[0].partition(" ")[2]
                    cost = (choice.seconds, choice.forwards, way.tokens)
                    found.append((judged.name, way.name, choice.count, words, *numbers, *cost))
        return found

    def _repr_html_(self) -> str:
        caption = (
            f"{len(self.ways)} ways of choosing layers of {self.model.source} on {self.calibration}"
        )
        return html_table(caption, SWEEP_COLUMNS, self.rows())


SWEEP_COLUMNS = (
    "text",
    "way",
    "removed",
    "layers",
    "loss",
    "loss_stderr",
    "perplexity",
    "perplexity_stderr",
    "loss_difference",
    "loss_difference_stderr",
    "kl",
    "kl_stderr",
    "seconds",
    "forwards",
    "calibration_tokens",
)


def _column(judgement: Judgement, measure: Measure, sequences: int) -> "array[float]":
    values = array("f", judgement.by_sequence)
    return values[:sequences] if measure == "loss" else values[sequences:]


def ratio_estimate(means: Sequence[float], sizes: Sequence[int]) -> Estimate:
    """The mean over tokens and its error over sequences, as the evaluation computes them."""
    count, total = len(means), sum(sizes)
    mean = math.fsum(each * size for each, size in zip(means, sizes, strict=True)) / total
    spread = math.fsum(((each - mean) * size) ** 2 for each, size in zip(means, sizes, strict=True))
    stderr = math.sqrt(count / (count - 1) * spread) / total if count > 1 else 0.0
    return Estimate(value=mean, stderr=stderr)

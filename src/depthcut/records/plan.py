"""Which layers make up a new model, and why."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from depthcut.frames import Row, data_frame, html_table
from depthcut.records.base import Origin, Record
from depthcut.records.blocks import Block, layers_in_words, merged
from depthcut.records.facts import Estimate, ModelFacts, value_and_error
from depthcut.records.sublayers import Sublayer, removal_in_words, sublayers_in_words
from depthcut.settings import PlanSettings, SearchSettings

if TYPE_CHECKING:
    from pandas import DataFrame


class Alternative(Record, frozen=True, kw_only=True):
    """Another choice of as many layers, or of as many parts of layers."""

    removed: tuple[Block, ...]
    zeroed: tuple[Sublayer, ...] = ()
    """Parts that go of layers that stay."""
    score: float
    difference: Estimate
    """Its score minus the plan's, paired over sequences."""

    @property
    def words(self) -> str:
        """What goes, for people."""
        return removal_in_words(self.removed, self.zeroed)


class Rival(Record, frozen=True, kw_only=True):
    """A choice that won on some of the resampled texts."""

    removed: tuple[Block, ...]
    share: float


class TextChoice(Record, frozen=True, kw_only=True):
    """What one of several texts would have chosen."""

    source: str
    removed: tuple[Block, ...]


class Stability(Record, frozen=True, kw_only=True):
    """How much a choice depends on the text that it was made on."""

    resamples: int
    """Texts of as many sequences, drawn from those that were read, with repeats (bootstrap)."""
    share: float
    """Of these on which the same layers are chosen."""
    overlap: float
    """Layers that are in both choices over those that are in either, mean over the resamples."""
    rivals: tuple[Rival, ...]
    """Other choices, most frequent first."""
    halves: tuple[tuple[Block, ...], ...]
    """The choice of the first and of the second half of the sequences."""
    texts: tuple[TextChoice, ...]
    """The choice of each text, where several were read."""


class LayerSlice(Record, frozen=True, kw_only=True):
    """Consecutive layers [start, stop) of a model, taken in this order."""

    start: int
    stop: int
    model: str | None = None
    """Whose layers; None: the plan's own model."""


class Plan(Record, frozen=True, kw_only=True):
    """Which layers of a model make up the new one, in order, and why."""

    kind: Literal["plan"] = "plan"
    origin: Origin
    model: ModelFacts
    settings: PlanSettings
    survey: str | None
    """`inputs` of the survey or search that it came from; None: chosen by hand."""
    search: SearchSettings | None = None
    """Of the search that found it; None: a survey's criterion, or a hand."""
    slices: tuple[LayerSlice, ...]
    """What the new model is made of. Layers that no slice names are removed."""
    zeroed: tuple[Sublayer, ...] = ()
    """Parts that add nothing any more in layers that stay: their last projection becomes zero."""
    score: float | None
    alternatives: tuple[Alternative, ...]
    """The runners-up, best first."""
    stability: Stability | None = None
    """Of a choice by a survey's scores; None: of one sequence, by a search or by hand."""
    warnings: tuple[str, ...]

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """The source layer of each new layer; ascending unless the plan rearranges."""
        return tuple(layer for each in self.slices for layer in range(each.start, each.stop))

    @property
    def removed(self) -> tuple[Block, ...]:
        """The fewest blocks of all layers that no slice names."""
        kept = set(self.kept_layers)
        return merged(layer for layer in range(self.model.layers) if layer not in kept)

    @property
    def removed_layers(self) -> tuple[int, ...]:
        return tuple(layer for start, stop in self.removed for layer in range(start, stop))

    @property
    def rearranges(self) -> bool:
        """Whether layers are repeated or change their order."""
        kept = self.kept_layers
        return any(second <= first for first, second in pairwise(kept))

    @property
    def words(self) -> str:
        """What goes, for people: "layers 12–18 (7 layers); attention of layers 20, 22"."""
        return removal_in_words(self.removed, self.zeroed)

    @property
    def zeroed_words(self) -> str:
        """What goes of layers that stay: "attention of layers 20, 22"."""
        return sublayers_in_words(self.zeroed)

    @property
    def change(self) -> str:
        """What becomes of the stack: "without layers 12–18 (7 layers)"."""
        if not self.rearranges:
            return f"without {self.words}"
        order = f"as {layers_in_words([(each.start, each.stop) for each in self.slices])}"
        return f"{order} without {self.zeroed_words}" if self.zeroed else order

    def to_frame(self) -> "DataFrame":
        """One row for the choice and each runner-up, best first; needs pandas."""
        return data_frame(("layers", "score", "difference", "stderr"), self._choices())

    def _repr_html_(self) -> str:
        caption = f"Plan for {self.model.source}: {self.model.layers} layers {self.change}"
        columns = ("removes", "score", "difference to the plan", "± stderr")
        return html_table(". ".join((caption, *self.warnings)), columns, self._choices())

    def _choices(self) -> list[Row]:
        return [
            (self.words, self.score, None, None),
            *(
                (each.words, each.score, *value_and_error(each.difference))
                for each in self.alternatives
            ),
        ]


def slices_without(removed: Sequence[Block], layers: int) -> tuple[LayerSlice, ...]:
    """What is left of `layers` layers once the blocks are gone."""
    gone = {layer for start, stop in removed for layer in range(start, stop)}
    kept = merged(layer for layer in range(layers) if layer not in gone)
    return tuple(LayerSlice(start=start, stop=stop) for start, stop in kept)

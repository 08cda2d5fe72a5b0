"""Which layers a model can best spare, for every number of them, as measured by their removal."""

from typing import TYPE_CHECKING, Literal

from depthcut.errors import PlanError
from depthcut.frames import Row, data_frame, html_table
from depthcut.records.base import Origin, Record
from depthcut.records.blocks import Block
from depthcut.records.facts import Estimate, ModelFacts, TextFacts
from depthcut.records.plan import Alternative
from depthcut.records.sublayers import Sublayer, removal_in_words, units_of
from depthcut.settings import LoadSettings, SearchSettings

if TYPE_CHECKING:
    from pandas import DataFrame


class Cost(Record, frozen=True, kw_only=True):
    """What a choice of layers took."""

    seconds: float
    forwards: float
    """Work in whole forward passes of the untouched model over the text: layers and heads that
    ran, by their share of the parameters."""
    layer_passes: int
    """Passes of one sequence through one layer."""
    head_passes: int
    """Passes of one sequence through the final norm and the head."""
    evaluations: float
    """Readings of the whole text by candidates."""


class FrontierPoint(Record, frozen=True, kw_only=True):
    """The best choice of so many layers, on the text that was searched on."""

    removed: tuple[Block, ...]
    zeroed: tuple[Sublayer, ...] = ()
    """Parts that go of layers that stay."""
    loss: Estimate
    """Mean next-token loss in nats."""
    loss_difference: Estimate
    """To the untouched model, paired over sequences."""
    kl_divergence: Estimate
    """KL(untouched ‖ cut) in nats."""
    runners_up: tuple[Alternative, ...]
    """Other choices of as many layers that read the whole text, best first. Their score is what
    the search made least."""
    cost: Cost | None = None
    """Of the search until it knew this choice. None: not recorded."""

    @property
    def words(self) -> str:
        """What goes, for people."""
        return removal_in_words(self.removed, self.zeroed)


class Search(Record, frozen=True, kw_only=True):
    """A model in the loop: which layers it can best spare."""

    kind: Literal["search"] = "search"
    origin: Origin
    model: ModelFacts
    text: TextFacts
    settings: SearchSettings
    load: LoadSettings
    paper: str
    untouched: Estimate
    """Mean next-token loss of the untouched model in nats."""
    frontier: tuple[FrontierPoint, ...]
    """By number of removed layers, ascending; numbers that the search did not pass are missing."""
    complete: bool
    """Off: it stopped at its budget."""
    cost: Cost

    def count(self, point: FrontierPoint) -> int:
        """How many layers a choice takes, or parts of layers if the search chose among these."""
        if self.settings.granularity == "sublayer":
            return len(units_of(point.removed, point.zeroed))
        return sum(stop - start for start, stop in point.removed)

    def find(self, count: int) -> FrontierPoint:
        """The best choice of `count` layers, or parts of layers.

        Raises:
            PlanError: The search found none.
        """
        for point in self.frontier:
            if self.count(point) == count:
                return point
        found = ", ".join(str(self.count(point)) for point in self.frontier)
        if not self.complete:
            raise PlanError(
                f"the search spent its budget before it came to {count}: it has "
                f"{found or 'no choice'}; search with more --minutes or --evaluations, into "
                "another --out"
            )
        raise PlanError(
            f"the search did not come to {count}: it has {found or 'no choice'}; search with "
            f"--drop {count}"
        )

    def to_frame(self) -> "DataFrame":
        """One row for each number of removed layers; needs pandas."""
        return data_frame(_COLUMNS, self._rows())

    def _repr_html_(self) -> str:
        caption = (
            f"{self.settings.method} search of {self.model.source} on {self.text.tokens:,} tokens "
            f"of {self.text.source}"
        )
        return html_table(caption, _COLUMNS, self._rows())

    def _rows(self) -> list[Row]:
        return [
            (
                self.count(point),
                point.words,
                point.loss_difference.value,
                point.loss_difference.stderr,
                point.kl_divergence.value,
                point.kl_divergence.stderr,
            )
            for point in self.frontier
        ]


_COLUMNS = ("removed", "layers", "loss lost", "± stderr", "KL", "± stderr of KL")

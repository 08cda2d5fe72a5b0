"""How redundant the layers of a model are on a text."""

from typing import TYPE_CHECKING, Literal

from depthcut.errors import RecordError, nearest
from depthcut.frames import Row, data_frame, html_table
from depthcut.records.base import Origin, Record
from depthcut.records.blocks import Block, layers_in_words
from depthcut.records.facts import ModelFacts, TextFacts
from depthcut.settings import LoadSettings, SurveySettings, Tokens

if TYPE_CHECKING:
    from pandas import DataFrame


Scope = Literal["block", "layer", "attention", "mlp"]


class Scores(Record, frozen=True, kw_only=True):
    """One criterion, at the last or at all tokens: a score for each block, low = redundant."""

    criterion: str
    tokens: Tokens
    scope: Scope
    """block: every block [start, start + size); layer: single layers only, whose scores add up;
    attention or mlp: that part of single layers only."""
    paper: str
    meaning: str = ""
    """What is measured, and what the ends of its range say."""
    mean: tuple[tuple[float, ...], ...]
    """mean[start][size - 1]; a criterion of another scope than block has one for each start.

    Rows may be shorter than the layers from there on: costly criteria score blocks up to a largest
    one, and some criteria have nothing to say of some starts.
    """
    stderr: tuple[tuple[float, ...], ...]
    """Standard error of the mean over sequences, same shape."""
    per_sequence: bytes
    """float32, little endian, (rows, entries of mean in reading order): for paired errors.

    A row is a sequence that scored, in the order in which they were read: all, or those that the
    criterion did not fit on, or that are long enough for it. Within one criterion rows pair;
    between criteria only where there are as many.
    """


class Stopping(Record, frozen=True, kw_only=True):
    """What a survey that was to stop once its choice is settled came to."""

    settled: bool
    """False: the text ended first."""
    confidence: float
    """With which the choice was to be that of all such text, however long."""
    criterion: str
    """Whose choice it is, at all tokens."""
    removed: tuple[Block, ...]
    """The choice, settled or not."""
    tokens: int
    """Read before it stopped."""
    of_tokens: int
    """There to be read."""


class Survey(Record, frozen=True, kw_only=True):
    """How redundant the layers of a model are on a text."""

    kind: Literal["survey"] = "survey"
    origin: Origin
    model: ModelFacts
    text: TextFacts
    settings: SurveySettings
    load: LoadSettings
    norms: tuple[float, ...]
    """Mean Euclidean norm of the residual stream at each depth 0..L, over all tokens."""
    scores: tuple[Scores, ...]
    stopping: Stopping | None = None
    """None: it was to read the whole text."""

    def find(self, criterion: str, tokens: Tokens) -> Scores:
        """The scores of one criterion.

        Raises:
            RecordError: The survey has none of that name.
        """
        for scores in self.scores:
            if (scores.criterion, scores.tokens) == (criterion, tokens):
                return scores
        known = list(dict.fromkeys(scores.criterion for scores in self.scores))
        if criterion in known:
            raise RecordError(
                f"the survey has {criterion} at other tokens only than {tokens!r}: "
                f"choose --tokens {'last' if tokens == 'all' else 'all'}"
            )
        raise RecordError(
            f"no criterion {criterion!r} in the survey{nearest(criterion, known)}; it has "
            f"{', '.join(known)}: choose one of them, or survey again with "
            f"--criteria {criterion}"
        )

    def to_frame(self) -> "DataFrame":
        """One row for each criterion and block [start, stop); needs pandas."""
        rows = [
            (each.criterion, each.tokens, start, start + size, score, stderr)
            for each in self.scores
            for start, row in enumerate(each.mean)
            for size, (score, stderr) in enumerate(
                zip(row, each.stderr[start], strict=True), start=1
            )
        ]
        return data_frame(("criterion", "tokens", "start", "stop", "score", "stderr"), rows)

    def _repr_html_(self) -> str:
        rows: list[Row] = []
        for each in self.scores:
            largest = min(self.model.layers - 1, max(len(row) for row in each.mean))
            for size in (size for size in (1, 2, 4, 8, 16, 32) if size <= largest):
                starts = [start for start, row in enumerate(each.mean) if len(row) >= size]
                best = min(starts, key=lambda start: each.mean[start][size - 1])
                score, stderr = each.mean[best][size - 1], each.stderr[best][size - 1]
                words = layers_in_words([(best, best + size)])
                rows.append((each.criterion, each.tokens, words, score, stderr))
        caption = (
            f"Survey of {self.model.source}: the most redundant of {self.model.layers} layers "
            f"on {self.text.tokens:,} tokens of {self.text.source}"
        )
        return html_table(caption, ("criterion", "tokens", "block", "score", "± stderr"), rows)

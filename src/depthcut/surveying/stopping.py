"""When a survey has read enough: the layers that one criterion ranks lowest are settled."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from depthcut.confidence import LEAST_OBSERVATIONS, worse
from depthcut.errors import SettingsError
from depthcut.model.ranks import ALONE, Ranks
from depthcut.records import Block, Stopping, layer_counts, merged
from depthcut.settings import SurveySettings, Tokens
from depthcut.surveying.criteria import Criterion, row_widths
from depthcut.surveying.scores import Rows
from depthcut.text.sequences import Sequences

_LOOKS_GROW = 1.25
_UNSETTLED: Mapping[str, str] = {
    "linear maps": "its maps are fitted on half of a text whose end is known",
    "full batches": "it has one number a batch",
    "weights": "no text changes it",
    "gradients": "it is measured once the text is read",
    "losses": "it is measured once the text is read",
    "part": "it is measured once the text is read",
}
"""By what a criterion needs: why no survey can stop by it."""


class Settling:
    """Looks at a survey on its way, until its choice of so many layers is settled.

    The choice is what `plan` takes by that criterion at all tokens. It is settled once each
    candidate that it leaves is worse than each that it takes, by the sequential test of
    `confidence` on differences paired over sequences: valid at all looks together, at the error
    rate over all such pairs.
    """

    def __init__(
        self,
        name: str,
        criterion: Criterion,
        *,
        count: int,
        layers: int,
        confidence: float,
        sequences: Sequences,
    ) -> None:
        self._key: tuple[str, Tokens] = (name, "all")
        self._confidence = confidence
        self._candidates, self._columns = _candidates(criterion, count, layers)
        self._taken = 1 if criterion.scope == "block" else count
        self._read, self._wanted = 0, LEAST_OBSERVATIONS
        self._lowest: list[int] = []
        self._settled = False
        self.sequences = sequences.shuffled(seed=0)
        """In random order, as the test takes them to come."""

    def enough(self, sequences: int, rows: Rows, ranks: Ranks = ALONE) -> bool:
        """Whether to stop, asked after each batch; looks when a quarter more has been read.

        Args:
            sequences: In the batch, whichever process read it.
            rows: What this process has.
            ranks: The processes that share the batches; all ask alike and are told alike.
        """
        self._read += sequences
        if self._read < min(self._wanted, len(self.sequences.sequences)):
            return False
        self._wanted = math.ceil(self._read * _LOOKS_GROW)
        own = rows.get(self._key)
        found = ranks.everywhere(torch.stack(own)[:, self._columns].cpu() if own else None)
        if not (known := [each for each in found if each is not None]):
            return False  # all too short for the criterion
        values = torch.cat(known)
        self._lowest = lowest(values, self._taken)
        self._settled = settled(values, self._taken, 1 - self._confidence)
        return self._settled

    def read(self) -> Sequences:
        """The sequences read, by all processes."""
        return self.sequences.first(self._read)

    def record(self) -> Stopping:
        """What the last look saw; the end of the text was one."""
        removed = merged(layer for each in self._lowest for layer in range(*self._candidates[each]))
        return Stopping(
            settled=self._settled,
            confidence=self._confidence,
            criterion=self._key[0],
            removed=removed,
            tokens=self.read().facts.tokens,
            of_tokens=self.sequences.facts.tokens,
        )


def settling(
    settings: SurveySettings,
    criteria: Mapping[str, Criterion],
    *,
    layers: int,
    sequences: Sequences,
) -> Settling | None:
    """What the settings ask to be settled; None: the whole text is read.

    Raises:
        SettingsError: A confidence that is none, a criterion that is not measured on the way, a
            number of layers that cannot be read, or settings of what is not asked for.
        PlanError: None or all of the layers.
    """
    asked = {"settle": settings.settle, "settle-by": settings.settle_by}
    if settings.confidence is None:
        if given := [name for name, each in asked.items() if each is not None]:
            raise SettingsError(f"{given[0]} without confidence: add --confidence 0.95")
        return None
    if not 0.5 < settings.confidence < 1:
        raise SettingsError(
            f"confidence {settings.confidence:g}: write a share above 0.5 and below 1, such as 0.95"
        )
    if settings.stream:
        raise SettingsError(
            "--stream runs all of the text through each layer before the next, so nothing is "
            "saved by stopping: leave out --stream or --confidence"
        )
    name = settings.settle_by or "angular"
    if name not in criteria:
        raise SettingsError(
            f"settle-by {name}: the survey measures {', '.join(criteria)}; add {name} to "
            "--criteria, or settle by one of them"
        )
    _refuse_unsettled(name, criteria)
    count = _count(settings, layers)
    return Settling(
        name,
        criteria[name],
        count=count,
        layers=layers,
        confidence=settings.confidence,
        sequences=sequences,
    )


def lowest(values: Tensor, taken: int) -> list[int]:
    """The candidates of lowest mean, of equals the first.

    Args:
        values: A row for each sequence, (sequences, candidates).
        taken: How many.
    """
    return sorted(_by_mean(values)[:taken])


def settled(values: Tensor, taken: int, error_rate: float) -> bool:
    """Whether those of lowest mean are so beyond the sequences seen.

    Asked again and again of a growing sample, this is true of a wrong choice with at most the
    error rate. A wrong choice takes a candidate and leaves another that belong the other way
    round, and at most taken x left pairs do: each has its share of the rate.

    Args:
        values: A row for each sequence, (sequences, candidates) float64.
        taken: How many are chosen, fewer than there are.
        error_rate: Between 0 and 1/2.
    """
    order, means = _by_mean(values), values.mean(dim=0)
    pairs = [(one, other) for one in order[:taken] for other in order[taken:]]
    pairs.sort(key=lambda pair: (means[pair[1]] - means[pair[0]]).item())  # closest first
    share = error_rate / len(pairs)
    return all(worse(values[:, other] - values[:, one], share) for one, other in pairs)


def _by_mean(values: Tensor) -> list[int]:
    order: list[int] = values.mean(dim=0).argsort(stable=True).tolist()
    return order


def _candidates(criterion: Criterion, count: int, layers: int) -> tuple[list[Block], list[int]]:
    """What is chosen from: blocks of the size, or all layers; and the columns of their scores."""
    size = count if criterion.scope == "block" else 1
    blocks, columns, begun = [], [], 0
    for start, width in enumerate(row_widths(criterion, layers, layers)):
        if width >= size:
            blocks.append((start, start + size))
            columns.append(begun + size - 1)
        begun += width
    return blocks, columns


def _count(settings: SurveySettings, layers: int) -> int:
    counts = layer_counts(str(settings.settle or "25%"), layers, setting="settle")
    if len(counts) > 1:
        raise SettingsError(f"settle {settings.settle}: name one number of layers, such as 7")
    return counts[0]


def _refuse_unsettled(name: str, criteria: Mapping[str, Criterion]) -> None:
    if reason := _UNSETTLED.get(criteria[name].needs):
        raise SettingsError(
            f"settle-by {name}: no survey can stop by it, {reason}; settle by a criterion of "
            "states, such as angular"
        )
    for other, criterion in criteria.items():
        if criterion.needs == "linear maps":
            raise SettingsError(
                f"{other} is fitted on half of the text and scored on the other, and --confidence "
                f"may stop on the way: leave out {other} or --confidence"
            )

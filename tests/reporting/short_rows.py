"""Surveys of which some blocks have no score."""

import msgspec

from depthcut.records import Scores, Survey


def short_rows(survey: Survey, *, first: int = 0, largest: int) -> Survey:
    """The same without blocks that start before `first` or have more layers than `largest`."""
    return msgspec.structs.replace(
        survey, scores=tuple(_short(each, first, largest) for each in survey.scores)
    )


def _short(scores: Scores, first: int, largest: int) -> Scores:
    if scores.scope == "layer":
        return scores
    rows = {
        name: tuple(
            row[:largest] if start >= first else ()
            for start, row in enumerate(getattr(scores, name))
        )
        for name in ("mean", "stderr")
    }
    return msgspec.structs.replace(scores, **rows)

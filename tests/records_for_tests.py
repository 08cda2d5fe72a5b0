"""Records made by hand, for tests that need no model."""

import random
from array import array
from collections.abc import Sequence
from typing import Literal

from depthcut.records import ModelFacts, Origin, Scores, Survey, TextFacts
from depthcut.settings import LoadSettings, SurveySettings

ORIGIN = Origin(inputs="inputs", seconds=1.0, created="2026-01-01", versions={}, machine="test")


def make_facts(layers: int = 6, *, layer_parameters: int = 1000) -> ModelFacts:
    return ModelFacts(
        source="tiny",
        digest="digest",
        model_type="llama",
        layers=layers,
        hidden_size=8,
        dtype="F32",
        layer_parameters=(layer_parameters,) * layers,
        other_parameters=500,
        weight_bytes=4 * (layer_parameters * layers + 500),
    )


def make_scores(
    samples: Sequence[Sequence[float]],
    layers: int,
    *,
    scope: Literal["block", "layer"] = "block",
    criterion: str = "angular",
    largest: int = 1000,
) -> Scores:
    """Scores whose mean is that of `samples`: one row a sequence, entries in reading order."""
    widths = [min(layers - start, largest) if scope == "block" else 1 for start in range(layers)]
    columns = [sum(column) / len(samples) for column in zip(*samples, strict=True)]
    rows, at = [], 0
    for width in widths:
        rows.append(tuple(columns[at : at + width]))
        at += width
    return Scores(
        criterion=criterion,
        tokens="all",
        scope=scope,
        paper="none",
        mean=tuple(rows),
        stderr=tuple(tuple(0.0 for _ in row) for row in rows),
        per_sequence=array("f", [each for sample in samples for each in sample]).tobytes(),
    )


def make_survey(layers: int = 6, *, seed: int = 0, sequences: int = 3) -> Survey:
    random_numbers = random.Random(seed)

    def scores(scope: Literal["block", "layer"], criterion: str) -> Scores:
        width = layers * (layers + 1) // 2 if scope == "block" else layers
        samples = [[random_numbers.random() for _ in range(width)] for _ in range(sequences)]
        return make_scores(samples, layers, scope=scope, criterion=criterion)

    return Survey(
        origin=ORIGIN,
        model=make_facts(layers),
        text=TextFacts(source="text", digest="digest", sequences=sequences, tokens=30),
        settings=SurveySettings(),
        load=LoadSettings(),
        norms=(1.0,) * (layers + 1),
        scores=(scores("block", "angular"), scores("layer", "block-influence")),
    )

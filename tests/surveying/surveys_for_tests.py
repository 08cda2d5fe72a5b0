"""Surveys of tiny models on random tokens."""

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from depthcut.model.loading import from_memory
from depthcut.records import Scores, Survey, TextFacts
from depthcut.settings import LoadSettings, SurveySettings
from depthcut.surveying.survey import survey_model
from depthcut.text.sequences import Sequences
from tests.tiny import VOCABULARY

LENGTHS = (12, 20, 5, 17, 2)
"""Batches of two: padding in each, and a last batch of one."""


def make_sequences(lengths: Sequence[int] = LENGTHS, *, seed: int = 0) -> Sequences:
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(0, VOCABULARY, (length,), generator=generator) for length in lengths]
    facts = TextFacts(source="random", digest="x", sequences=len(ids), tokens=sum(lengths))
    return Sequences(facts, tuple(ids), tuple(lengths))


def survey(model: PreTrainedModel, sequences: Sequences, **settings: object) -> Survey:
    chosen = SurveySettings(**{"batch_size": 2, **settings})  # type: ignore[arg-type]
    return survey_model(from_memory(model, None), sequences, chosen, LoadSettings())


def flat(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor([each for row in rows for each in row], dtype=torch.float64)


def per_sequence(scores: Scores) -> Tensor:
    """(sequences that scored, entries)."""
    samples = torch.tensor(array("f", scores.per_sequence)).double()
    return samples.reshape(-1, sum(len(row) for row in scores.mean))

"""What an engine is to a measurement: it opens models, and runs one once at a time."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from depthcut.benching.work import Work
from depthcut.records import ModelFacts

Prompts = Sequence[Sequence[int]]
"""Token ids, all of one length: as many prompts as the batch has sequences."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of a model took."""

    prefill_seconds: float
    """Reading all prompts, until each sequence has its first new token."""
    decode_seconds: float
    """Every further token of all sequences, one a step for each, with the key-value cache."""
    cache_bytes: int | None
    """Key-value cache at the end; None: the engine does not tell."""
    device_bytes: int | None
    """On a GPU: the model's weights and what the run took there at most; None: elsewhere, or the
    engine does not tell."""


class Engine(Protocol):
    """A model opened in an engine."""

    @property
    def facts(self) -> ModelFacts:
        """What the model says of itself."""

    @property
    def work(self) -> Work:
        """What it has to read and to compute for a token."""

    @property
    def weight_bytes(self) -> int:
        """Its weights, as the engine holds them."""

    @property
    def vocabulary(self) -> int:
        """How many tokens it knows."""

    @property
    def positions(self) -> int | None:
        """How many tokens it can take at all; None: no such limit."""

    @property
    def device(self) -> str:
        """What runs it: cpu, or a GPU by its name."""

    @property
    def gpus(self) -> tuple[int, ...]:
        """The CUDA devices that it runs on, by index."""

    @property
    def threads(self) -> int | None:
        """That it computes with; None: on a GPU."""

    @property
    def versions(self) -> dict[str, str]:
        """Of the packages that the engine consists of."""

    def once(self, prompts: Prompts, new_tokens: int) -> Run:
        """Read the prompts and write `new_tokens` (at least 2) greedily after each of them, whether
        or not one of them ends a text."""

    def close(self) -> None:
        """Let go of the model, and restore what opening it changed."""


def random_prompts(vocabulary: int, tokens: int, count: int) -> list[list[int]]:
    """Random tokens that every vocabulary has, the same each time; more prompts add to fewer."""
    generator = random.Random(0)
    return [[generator.randrange(vocabulary) for _ in range(tokens)] for _ in range(count)]

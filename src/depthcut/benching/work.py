"""What a model has to do for a token: the ideal that its speed is held against.

Decoding one sequence reads the weights once for each token and computes little with them, so its
ideal time is proportional to the bytes read. A prefill computes with each weight for every token of
the prompt, so its ideal time is proportional to the multiply-adds: one for each parameter that a
token uses (2 FLOPs), of the head at the last position only. Attention over the context (both
ideals) and the reading of the cache are left out: they shrink with the layers as the rest does.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

_OF_EXPERTS = re.compile(r"(?:^|\.)experts\.|_exps\.")


@dataclass(frozen=True, slots=True)
class Work:
    """What one token costs, and what the last position of a prompt costs beside it."""

    read_bytes: int
    """Of weights, to decode one token."""
    parameters: int
    """That every token of a prompt uses: multiply-adds. Layers, and what else is not the head."""
    head_parameters: int
    """That the one position uses whose next token is asked for."""

    def prefill(self, prompt_tokens: int) -> int:
        """Multiply-adds that reading a prompt takes."""
        return self.parameters * prompt_tokens + self.head_parameters


class Weight(NamedTuple):
    """A tensor of a model."""

    name: str
    parameters: int
    size_bytes: int
    looked_up: bool
    """A table of embeddings, of which a token takes a row."""
    head: bool
    """It maps the last state to the vocabulary; it may be a table of embeddings too."""


def work_of(weights: Iterable[Weight], *, expert_share: float = 1.0) -> Work:
    """What a token costs, given the weights of a model.

    Args:
        weights: All of them, each once.
        expert_share: Of the experts of a layer, how many a token visits.
    """
    read = parameters = head = 0.0
    for each in weights:
        share = expert_share if _OF_EXPERTS.search(each.name) else 1.0
        if each.head:
            head += each.parameters
        elif each.looked_up:
            continue
        else:
            parameters += share * each.parameters
        read += share * each.size_bytes
    return Work(round(read), round(parameters), round(head))


def ideal_decode(first: Work, other: Work) -> float:
    """How many times as fast as the first the other decodes, if time goes by the bytes read."""
    return first.read_bytes / other.read_bytes


def ideal_prefill(first: Work, other: Work, prompt_tokens: int) -> float:
    """How many times as fast as the first the other reads, if time goes by multiply-adds."""
    return first.prefill(prompt_tokens) / other.prefill(prompt_tokens)

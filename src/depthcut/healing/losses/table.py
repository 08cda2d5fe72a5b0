"""What training makes small: each one function from what a batch came to, to a sum over tokens.

A mixture of them is written as kl:1,next-token:0.1. A token counts where the next one is to be
learned; sums are over those.
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from depthcut.errors import SettingsError, nearest
from depthcut.settings import HealSettings

_ROWS = 512
"""Whose probabilities are in memory at once; those of the others are computed again."""


class SomePredictions(NamedTuple):
    """A teacher's predictions on some tokens, that stand for all: its likeliest ones, and others
    drawn by their probabilities."""

    ids: Tensor
    """(tokens, k) int64; the same may stand there twice."""
    log_weights: Tensor
    """(tokens, k) float32: of what each stands for. Weights add up to 1."""
    entropy: Tensor
    """(tokens,) float32: of all that it predicts, nats."""


class Seen(NamedTuple):
    """What a batch came to, a row for each token that counts."""

    logits: Tensor
    """(tokens, vocabulary), with gradient."""
    labels: Tensor
    """(tokens,) int64: the next token."""
    states: tuple[Tensor, ...]
    """(tokens, hidden) each, with gradient, at the depths that are compared."""
    teacher: Tensor | SomePredictions | None
    """Its logits, (tokens, vocabulary), or some of them; None: no loss asks for them."""
    wanted: tuple[Tensor, ...]
    """The teacher's states, as `states`."""
    temperature: float = 1.0
    balance: Tensor | None = None
    """How unevenly a mixture of experts used them over the batch; None: no loss asks for it."""


def next_token(seen: Seen) -> Tensor:
    """Minus log-probability of the token that comes next, nats."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits.float(), labels, reduction="sum")

    return _by_rows(loss, seen.logits, seen.labels)


def kl(seen: Seen) -> Tensor:
    """Kullback-Leibler divergence from the teacher's predictions, nats (Hinton et al.,
    arXiv:1503.02531): both distributions at the temperature, times its square.

    Of a teacher of whom some tokens are known, those stand for all: right on average, and so is the
    gradient, where its likeliest tokens alone would never say what of the others is unlikely
    (Anshumann et al., arXiv:2503.16870).
    """
    scale = seen.temperature**2
    if isinstance(seen.teacher, SomePredictions):
        return scale * _by_rows(_divergence_by_some, seen.logits, *seen.teacher)
    assert seen.teacher is not None  # whoever asks for kl brings a teacher

    def loss(logits: Tensor, teacher: Tensor) -> Tensor:
        ours = functional.log_softmax(logits.float() / seen.temperature, dim=-1)
        theirs = functional.log_softmax(teacher.float() / seen.temperature, dim=-1)
        return functional.kl_div(ours, theirs, log_target=True, reduction="sum")

    return scale * _by_rows(loss, seen.logits, seen.teacher)


def hidden(seen: Seen) -> Tensor:
    """Squared distance of the states from the teacher's, over their squared length; mean over the
    depths that are compared."""
    losses = []
    for ours, theirs in zip(seen.states, (each.float() for each in seen.wanted), strict=True):
        length = theirs.square().sum(dim=1).clamp(min=1e-12)
        losses.append(((ours.float() - theirs).square().sum(dim=1) / length).sum())
    return torch.stack(losses).mean()


def balance(seen: Seen) -> Tensor:
    """What keeps the experts of a mixture in use: the model's own auxiliary loss (Fedus et al.,
    arXiv:2101.03961), the same for each token of the batch."""
    assert seen.balance is not None  # whoever asks for it lets the model compute it
    return seen.balance * len(seen.labels)


Loss = Callable[[Seen], Tensor]

LOSSES: dict[str, Loss] = {
    "next-token": next_token,
    "kl": kl,
    "hidden": hidden,
    "balance": balance,
}
"""By the name that --loss takes."""
OF_A_TEACHER = ("kl", "hidden")
OF_PREDICTIONS = {"next-token", "kl"}


def loss_weights(settings: HealSettings) -> dict[str, float]:
    """The mixture that the settings ask for: weights by name.

    Raises:
        SettingsError: Not a mixture, or one that needs a teacher where there is none.
    """
    if settings.loss is None:
        return {"kl" if settings.teacher else "next-token": 1.0}
    weights: dict[str, float] = {}
    for word in filter(None, re.split(r"[,\s]+", settings.loss)):
        name, _, number = word.partition(":")
        if name not in LOSSES:
            raise SettingsError(
                f"--loss {word}: expected {', '.join(LOSSES)}{nearest(name, LOSSES)}"
            )
        if name in weights:
            raise SettingsError(f"--loss {settings.loss}: {name} stands there twice")
        weights[name] = _weight(word, number)
    if not weights:
        raise SettingsError("--loss names none: write it as kl:1,next-token:0.1")
    asking = [name for name in weights if name in OF_A_TEACHER]
    if asking and settings.teacher is None:
        raise SettingsError(
            f"--loss {asking[0]} needs a teacher: give --teacher parent, or the model by name"
        )
    if settings.teacher is not None and not asking:
        raise SettingsError(
            f"--teacher and --loss {settings.loss}: no loss asks the teacher; write "
            "--loss next-token:1,kl:1, or leave one of them out"
        )
    return weights


def _weight(word: str, number: str) -> float:
    try:
        weight = float(number or 1)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise SettingsError(f"--loss {word}: a weight is a number above 0, as in kl:0.5")
    return weight


def _divergence_by_some(
    logits: Tensor, ids: Tensor, log_weights: Tensor, entropy: Tensor
) -> Tensor:
    ours = functional.log_softmax(logits.float(), dim=-1).gather(1, ids)
    return -(log_weights.exp() * ours).sum() - entropy.sum()


def _by_rows(loss: Callable[..., Tensor], *of_tokens: Tensor) -> Tensor:
    """The sum over some rows at a time, whose intermediate results are not kept."""
    total = of_tokens[0].new_zeros((), dtype=torch.float32)
    for rows in zip(*(torch.split(each, _ROWS) for each in of_tokens), strict=True):
        if torch.is_grad_enabled():
            total = total + checkpoint(loss, *rows, use_reentrant=False)
        else:
            total = total + loss(*rows)
    return total

"""Ways to make up for a removed block: each one function from sums over tokens to a projection.

With a the input of a layer's last projection (a 1 behind it for the bias; or the inputs of the
attention's and the MLP's side by side), m the residual stream that its output is added to and h the
untouched model's state where it should lead, all of a token t, every method looks for a matrix W of
little

    sum over t of |W a + m - h|^2 / |h|,

among all matrices or among some. The weight is there because the first tokens of a sequence
carry massive activations (hundreds of times as long): without it they alone would be fitted.
That sum is a quadratic form in W, so that a few sums over tokens say all, of any W. Of the gain of
a norm a and h are what the norm gives, a without its gain, and W is diagonal.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from depthcut.errors import SettingsError, nearest
from depthcut.repairing.changes import Seen
from depthcut.repairing.hadamard import hadamard

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Strengths that `refit` tries, in units of the mean of the diagonal of A."""
_LEAST_COSINE = 0.1


Aim = Callable[[Seen], tuple[Tensor, Tensor]]
"""From what is seen of some tokens to where their states shall go, (tokens, hidden), and the
weight of each token, (tokens, 1)."""


def to_states(seen: Seen) -> tuple[Tensor, Tensor]:
    """To the untouched model's states h, with weights 1/|h|."""
    lengths = torch.linalg.vector_norm(seen.target, dim=1, keepdim=True)
    return seen.target, 1 / torch.where(lengths > 0, lengths, 1)


def to_directions(seen: Seen) -> tuple[Tensor, Tensor]:
    """To the directions of the untouched model's states h, whatever the length.

    With x the state as it is and c the cosine between the two: to h * |x| / (c * |h|), which is
    what of the direction of h has x for its foot, with weights c / |x|^2. There the gradient of the
    sum is that of the sum of cosines, so that solving again and again ends where it is stationary.
    """
    lengths = torch.linalg.vector_norm(seen.target, dim=1, keepdim=True)
    now = torch.linalg.vector_norm(seen.now, dim=1, keepdim=True)
    lengths, now = (torch.where(each > 0, each, 1) for each in (lengths, now))
    products = (seen.target * seen.now).sum(dim=1, keepdim=True)
    cosines = (products / (lengths * now)).clamp(min=_LEAST_COSINE)
    return seen.target * (now / (cosines * lengths)), cosines / now.square()


@dataclass
class Sums:
    """Over the tokens t of a text, weighted; float64."""

    inputs: Tensor
    """A: sum of a a^T, (columns, columns)."""
    wanted: Tensor
    """B: sum of (h - m) a^T, (hidden, columns)."""
    square: float = 0.0
    """Sum of |h - m|^2."""
    scale: float = 0.0
    """Sum of |h|^2, weighted too, which an error is relative to."""

    @classmethod
    def empty(cls, hidden: int, columns: int, device: torch.device) -> "Sums":
        """Over no tokens."""
        zeros = torch.zeros(hidden + columns, columns, dtype=torch.float64, device=device)
        return cls(zeros[:columns], zeros[columns:])

    def add(self, seen: Seen, aim: Aim) -> None:
        """Take some tokens."""
        goal, weights = aim(seen)
        root = weights.sqrt()  # of rows, whose squares are summed
        given, wanted = seen.given * root, (goal - seen.rest) * root
        self.inputs += given.T @ given
        self.wanted += wanted.T @ given
        self.square += wanted.double().square().sum().item()
        self.scale += (goal * root).double().square().sum().item()

    def error(self, matrix: Tensor) -> float:
        """Root of the sum over tokens of |W a + m - h|^2 / |h|, over the sum of |h|."""
        fitted = ((matrix @ self.inputs - 2 * self.wanted) * matrix).sum().item()
        return math.sqrt(max(0.0, (fitted + self.square) / max(self.scale, 1e-300)))


class Solution(NamedTuple):
    """A matrix that a method offers."""

    matrix: Tensor
    """W, (hidden, columns), float64."""
    condition: float
    """Of the system that was solved: largest over least eigenvalue."""
    ridge: float | None = None
    """Its strength, in units of the mean of the diagonal of A; None: the method has none."""


Solve = Callable[[Sums, Tensor], Iterator[Solution]]
"""From the sums and the matrix W_0 as it is, to what the held-out tokens may choose from."""


class Method(NamedTuple):
    """What is changed, where, and how it is found."""

    solve: Solve | None
    """None: nothing is solved for, tensors of removed layers are merged (see `merging`)."""
    changes: Literal["mlp", "both", "norm", "all"] = "mlp"
    """In the layer before the block, the projection that ends the MLP; or both, the attention's
    too: first in one system, then, as what the MLP takes depends on what the attention gives, the
    MLP's alone; or all tensors. In the layer behind, the gain of the norm that it reads by."""
    behind: int = 0
    """In how many layers behind the block too, each towards the state that leaves it."""
    aim: Aim = to_states
    rounds: int = 1
    """How many times the MLP's projection is solved for, each on what the one before gives: the one
    that does best on held-out text stays."""
    refuse_width: Callable[[int], object] | None = None
    """Raises ArchitectureError for a hidden size that it is not for."""


def refit(sums: Sums, before: Tensor) -> Iterator[Solution]:
    """The whole projection anew: ridge regression towards what it was.

    Adds lambda |W - W_0|^2 to the sum and solves W (A + lambda) = B + lambda W_0, for every
    strength from one decomposition of A. Least squares on calibration states as reconstruction
    after pruning is old (of channels: He et al., arXiv:1707.06168); ReplaceMe
    (arXiv:2505.02819) solves for a map behind the projection, this for the projection itself.
    """
    values, vectors = torch.linalg.eigh(sums.inputs)
    values = values.clamp(min=0)
    missing = (sums.wanted - before @ sums.inputs) @ vectors
    for ridge in RIDGES:
        shifted = values + ridge * sums.inputs.diagonal().mean().clamp(min=1e-300)
        change = (missing / shifted) @ vectors.T
        yield Solution(before + change, (shifted[-1] / shifted[0]).item(), ridge)


def linear(sums: Sums, before: Tensor) -> Iterator[Solution]:
    """A linear map T behind the projection, folded into it: W = T W_0.

    The least-squares transform of ReplaceMe (Shopkhoev et al., arXiv:2505.02819): T of least
    |T M + Y - L|^2, with M the MLP's output, Y what it is added to and L the state behind the
    block. Deviation: tokens are weighted (see above). Where tokens are too few to say what T
    does to a direction, it is left as it is.

    With the aim `to_directions` it is their transform by cosine distance, which they look for by
    gradient steps: here by solving again and again, each time from where the last one led.
    """
    outputs = before @ sums.inputs @ before.T
    values, vectors = torch.linalg.eigh((outputs + outputs.T) / 2)
    told = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    missing = (sums.wanted @ before.T - outputs) @ vectors
    scaled = torch.where(told, missing / torch.where(told, values, 1), 0)
    least = values[told].amin() if bool(told.any()) else values[-1]
    condition = (values[-1] / least).item()
    yield Solution(before + scaled @ vectors.T @ before, condition)


def scale(sums: Sums, before: Tensor) -> Iterator[Solution]:
    """One factor for each channel of the projection's output: the rows of W_0, scaled.

    In the spirit of Prune&Comp (Chen et al., arXiv:2507.18212), which estimates the gap in
    magnitude that removed layers leave and closes it by rescaling weights. Not their estimate: a
    factor of least squares for each channel, acting on what the last MLP adds; or, where W_0 is
    the gain of a norm, on what that gives.
    """
    powers = ((before @ sums.inputs) * before).sum(dim=1)
    fitted = (sums.wanted * before).sum(dim=1)
    told = powers > 0
    factors = torch.where(told, fitted / torch.where(told, powers, 1), 1)
    least = powers[told].amin() if bool(told.any()) else powers.new_ones(())
    condition = (powers.amax() / least).item() if bool(told.any()) else 1.0
    yield Solution(factors[:, None] * before, condition)


def linearpatch(sums: Sums, before: Tensor) -> Iterator[Solution]:
    """One factor for each channel of the projection's output in a Hadamard basis.

    LinearPatch (Chen et al., arXiv:2505.24680) patches the residual stream itself by a matrix
    H^T D H, with H a Hadamard matrix and D diagonal, so that no channel's outlier sets a factor
    alone. Deviations: no weight that is there acts on the stream, so only what the projection adds
    is patched, W = H^T D H W_0; and D is of least squares, not a ratio of magnitudes.

    Raises:
        ArchitectureError: No Hadamard matrix of the model's width is made here.
    """
    rotation = hadamard(len(before)).to(before)
    turned = Sums(sums.inputs, rotation @ sums.wanted)
    for solution in scale(turned, rotation @ before):
        yield solution._replace(matrix=rotation.T @ solution.matrix)


METHODS: dict[str, Method] = {
    "refit": Method(refit, "both", behind=2),
    "refit-mlp": Method(refit),
    "linear": Method(linear),
    "linear-cosine": Method(linear, aim=to_directions, rounds=4),
    "linearpatch": Method(linearpatch, refuse_width=hadamard),
    "scale": Method(scale),
    "norm": Method(scale, "norm"),
    "merge": Method(None, "all"),
}
"""By the name that --method takes."""


def find_method(name: str) -> Method:
    """The method of a name.

    Raises:
        SettingsError: There is none.
    """
    if name not in METHODS:
        raise SettingsError(
            f"--method {name}: expected {', '.join(METHODS)}{nearest(name, METHODS)}"
        )
    return METHODS[name]

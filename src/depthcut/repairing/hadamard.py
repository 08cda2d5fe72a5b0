"""Hadamard matrices: orthogonal ones whose entries are all as large."""

import math

import torch
from torch import Tensor

from depthcut.errors import ArchitectureError

_PRIMES = {3: 11, 5: 19, 7: 13}
"""By an odd factor of the width, the prime that Paley's matrix of 4 times it is made from."""


def hadamard(width: int) -> Tensor:
    """An orthogonal matrix of entries 1 / sqrt(width) and their negatives, (width, width), float64.

    The Kronecker product of those of 2, 12, 20 and 28 (Paley 1933).

    Raises:
        ArchitectureError: The width is not made of these.
    """
    matrix, left = torch.ones(1, 1, dtype=torch.float64), width
    for odd, prime in _PRIMES.items():
        while left % (4 * odd) == 0:
            matrix, left = torch.kron(matrix, _paley(prime)), left // (4 * odd)
    while left % 2 == 0:
        matrix, left = torch.kron(matrix, _TWO), left // 2
    if left != 1:
        raise ArchitectureError(
            f"no Hadamard matrix of width {width} is known to linearpatch, only of 2, 12, 20, 28 "
            "and their products: choose another --method, such as refit"
        )
    return matrix / math.sqrt(width)


_TWO = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)


def _paley(prime: int) -> Tensor:
    """Of q + 1 for a prime q = 3 modulo 4, of 2 (q + 1) else; entries 1 and -1."""
    squares = {number * number % prime for number in range(1, prime)}
    sign = 1 if prime % 4 == 1 else -1
    conference = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
    conference[0, 1:], conference[1:, 0] = 1, sign
    for row in range(prime):
        for column in range(prime):
            if row != column:
                conference[row + 1, column + 1] = 1 if (row - column) % prime in squares else -1
    one = torch.eye(prime + 1, dtype=torch.float64)
    if sign < 0:
        return conference + one
    other = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    return torch.kron(conference, _TWO) + torch.kron(one, other)

"""What is left of each block once the best linear map stands in for it.

The map is fitted on the first half of the sequences and scored on the other, so that it cannot
know what it is judged on.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from depthcut.errors import SettingsError
from depthcut.model.loading import LoadedModel
from depthcut.model.memory import free_memory_bytes
from depthcut.model.ranks import ALONE, Ranks
from depthcut.records import Block
from depthcut.surveying.criteria import Criterion, blocks_up_to
from depthcut.surveying.scores import Rows

RIDGE = 1e-2
"""Of the mean variance of a direction, added to each: within 5 % of the best of 1e-6 to
1, block by block, on SmolLM2 from 8,000 tokens."""
_SHARE = 0.4
"""Of the free memory that the sums of all blocks may take."""


class LinearMaps:
    """Maps fitted by, then scored on, the sequences that come along.

    For a block of states x to y, the map is x + xB with the B of least sum over tokens of
    |y - x - xB|^2 / |y|^2 + ridge |B|^2. A few tokens of each sequence are hundreds of times as
    long as the others ("massive activations"); without the weight the map would fit them alone.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        criteria: Mapping[str, Criterion],
        *,
        fitting: int,
        width: int,
        ranks: Ranks = ALONE,
    ) -> None:
        """Maps of states of a width, of these blocks in reading order.

        The first `fitting` sequences are fitted on. Each of several processes fits on those that
        it reads, and their sums make the maps.
        """
        self.rows: Rows = {
            (name, tokens): [] for name, each in criteria.items() for tokens in each.tokens
        }
        self._criteria, self._fitting, self._seen = criteria, fitting, 0
        self._width, self._ranks = width, ranks
        self._sums: dict[Block, Tensor] = {}
        self._maps: dict[Block, Tensor] = {}
        self._blocks = blocks

    def add(self, states: Sequence[Tensor], lengths: Sequence[int]) -> None:
        """Take the next batch: the states at each depth, (batch, positions, hidden)."""
        first = max(0, self._fitting - self._seen)
        rows = list(enumerate(lengths))
        self._seen += len(rows)
        if fitted := rows[:first]:
            self._fit([torch.cat([state[row, :n] for row, n in fitted]) for state in states])
        if scored := rows[first:]:
            if not self._maps:
                self._solve(states[0].device)
            for row, length in scored:
                self._score([state[row, :length] for state in states])

    def pass_over(self, sequences: int) -> None:
        """Leave a batch to another process; all meet at the first that is scored on."""
        self._seen += sequences
        if self._seen > self._fitting and not self._maps:
            self._solve(torch.device("cpu"))

    def _fit(self, tokens: Sequence[Tensor]) -> None:
        for start, stop in self._blocks:
            before, after = _precise(tokens[start]), _precise(tokens[stop])
            before = before.to(after.device)
            norms = torch.linalg.vector_norm(after, dim=1, keepdim=True)
            both = torch.cat([before, after - before], dim=1) / torch.where(norms > 0, norms, 1)
            sums = both[:, : before.shape[1]].T @ both
            if (start, stop) in self._sums:
                self._sums[start, stop] += sums
            else:
                self._sums[start, stop] = sums.double()

    def _solve(self, device: torch.device) -> None:
        width = self._width
        for block in self._blocks:
            own = self._sums.pop(block, None)
            if own is None:  # another process read all that is fitted on
                own = torch.zeros(width, 2 * width, dtype=torch.float64, device=device)
            sums = self._ranks.sum(own)
            variances, together = sums[:, :width], sums[:, width:]
            ridge = RIDGE * variances.diagonal().mean() + torch.finfo(sums.dtype).tiny
            variances.diagonal().add_(ridge)
            self._maps[block] = torch.linalg.solve(variances, together)

    def _score(self, tokens: Sequence[Tensor]) -> None:
        errors: dict[str, list[Tensor]] = {name: [] for name in self._criteria}
        for start, stop in self._blocks:
            before, after = _precise(tokens[start]), _precise(tokens[stop])
            before = before.to(after.device)
            predicted = before + before @ self._maps[start, stop].to(before)
            for name, criterion in self._criteria.items():
                errors[name].append(criterion.function(predicted, after).double().cpu())
        for name, criterion in self._criteria.items():
            by_token = torch.stack(errors[name], dim=1)
            for at in criterion.tokens:
                found = by_token[-1] if at == "last" else by_token.mean(dim=0)
                self.rows[name, at].append(found)


def linear_maps(
    loaded: LoadedModel,
    criteria: Mapping[str, Criterion],
    *,
    largest: int,
    sequences: int,
    ranks: Ranks = ALONE,
) -> LinearMaps | None:
    """For the criteria that need them, if any is asked for.

    Args:
        loaded: The model.
        criteria: All that are asked for.
        largest: Layers in the largest block.
        sequences: How many there will be.
        ranks: The processes that share them.

    Raises:
        SettingsError: One sequence only, or sums that do not fit in memory.
    """
    asked = {name: each for name, each in criteria.items() if each.needs == "linear maps"}
    if not asked:
        return None
    name = next(iter(asked))
    if sequences < 2:
        raise SettingsError(
            f"{name} fits on half of the sequences and scores on the other: there is one; give "
            "more --tokens or lower --context"
        )
    layers, width = len(loaded.layers), loaded.facts.hidden_size
    free = free_memory_bytes(next(loaded.layers[-1].parameters()).device)
    needed = sum_bytes(layers, largest, width)
    if needed > _SHARE * free:
        fits = [
            size for size in range(1, largest) if sum_bytes(layers, size, width) <= _SHARE * free
        ]
        what = f"set --largest-block {fits[-1]}" if fits else f"leave {name} out of --criteria"
        raise SettingsError(
            f"{name} keeps {needed / 1e9:.1f} GB of sums for blocks of up to {largest} layers, "
            f"and may take {_SHARE * free / 1e9:.1f} GB: {what}"
        )
    return LinearMaps(
        blocks_up_to(layers, largest),
        asked,
        fitting=(sequences + 1) // 2,
        width=width,
        ranks=ranks,
    )


def sum_bytes(layers: int, largest: int, width: int) -> int:
    """Of the sums that make the maps of all blocks up to the largest."""
    return len(blocks_up_to(layers, largest)) * 2 * width**2 * 8


def _precise(states: Tensor) -> Tensor:
    """Half precision in float32, where it is exact; the rest in float64."""
    states = states.cpu() if states.device.type == "mps" else states  # no float64 there
    half = states.dtype in (torch.bfloat16, torch.float16)
    return states.float() if half else states.double()

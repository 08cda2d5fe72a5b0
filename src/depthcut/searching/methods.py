"""The ways to choose layers with the model in the loop: each one function.

A method is told how many layers may go and yields choices on its way, for every number of
layers that it passes; the best of each number by the whole text makes the frontier. It must be
deterministic: a killed search begins anew and finds in its journal what it had measured.
Light at import.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from depthcut.searching.asked import Asked
    from depthcut.searching.trials import Removed, Trials


@dataclass(frozen=True)
class Method:
    """A way to choose."""

    module: str
    """In this folder, with a function of the method's name, dashes as underscores."""
    paper: str
    meaning: str
    looks: bool = True
    """Off: it takes the same layers whatever the model and the text, and so costs nothing."""
    parts: bool = True
    """Off: it knows whole layers only."""

    def function(self, name: str) -> "Callable[[Trials, Asked], Iterator[Removed]]":
        module = import_module(f"depthcut.searching.{self.module}")
        found: Callable[[Trials, Asked], Iterator[Removed]] = getattr(
            module, name.replace("-", "_")
        )
        return found


_SLEB = "Song et al. 2024, SLEB, arXiv:2402.09025"

METHODS: Mapping[str, Method] = {
    "greedy": Method(
        "greedy",
        _SLEB,
        "one layer at a time, each time the one whose removal costs least, measured anew",
    ),
    "block": Method(
        "greedy",
        f"Gromov et al. 2024, arXiv:2403.17887; {_SLEB}",
        "the single block of each number of layers whose removal costs least",
    ),
    "greedy-block": Method(
        "greedy",
        _SLEB,
        "one block at a time: at each number of layers the best size of the last block too",
    ),
    "floating": Method(
        "floating",
        f"Pudil et al. 1994, Pattern Recognition Letters 15; {_SLEB}",
        "greedy with second thoughts: a layer comes back where fewer are then better than before",
    ),
    "beam": Method(
        "beam",
        _SLEB,
        "greedy from the several best choices of each number of layers at once",
    ),
    "evolve": Method(
        "evolve",
        "Sieberling et al. 2024, EvoPress, arXiv:2410.14649",
        "mutants of the best choice, ever fewer of them on ever more tokens, in generations",
    ),
    "ising": Method(
        "ising",
        "Jansen et al. 2026, arXiv:2602.00161",
        "the least energies of a quadratic form from gradients of gates, measured",
        parts=False,
    ),
    "exact": Method(
        "exact",
        _SLEB,
        "the least sums of what blocks cost alone, any number of blocks, measured",
    ),
    "last": Method(
        "baselines",
        "Gromov et al. 2024, arXiv:2403.17887; Lu et al. 2024, arXiv:2411.15558",
        "the deepest layers, but for the last one",
        looks=False,
    ),
    "random": Method(
        "baselines",
        "",
        "layers drawn by the seed",
        looks=False,
    ),
}
"""By name, as searches ask for them."""

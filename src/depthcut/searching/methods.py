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

    def function(self, name: str) -> "Callable[[Trials, Asked], Iterator[Removed]]":
        module = import_module(f"depthcut.searching.{self.module}")
        found: Callable[[Trials, Asked], Iterator[Removed]] = getattr(
            module, name.replace("-", "_")
        )
        return found


METHODS: Mapping[str, Method] = {
    "greedy": Method(
        "greedy",
        "Song et al. 2024, SLEB, arXiv:2402.09025",
        "one layer at a time, each time the one whose removal costs least, measured anew",
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

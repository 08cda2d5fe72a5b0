"""Searches of tiny models on random tokens; oracles that run whole models without the layers."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from depthcut.model.loading import from_memory
from depthcut.model.skipping import Skipper, skipping
from depthcut.records import Search, TextFacts
from depthcut.searching.asked import Asked
from depthcut.searching.journal import Journal
from depthcut.searching.search import search_model
from depthcut.searching.trials import Removed, Trials
from depthcut.settings import LoadSettings, SearchSettings
from depthcut.text.sequences import Sequences
from tests.slices import lacking
from tests.tiny import VOCABULARY, build_tiny

BATCH = 4


@cache
def tiny(layers: int = 6) -> PreTrainedModel:
    return build_tiny("llama", layers=layers)


@cache
def some_text(count: int = 16, length: int = 12) -> Sequences:
    """Sequences of which every third is shorter."""
    generator = torch.Generator().manual_seed(1)
    lengths = [length if number % 3 else length // 2 for number in range(count)]
    ids = tuple(torch.randint(0, VOCABULARY, (each,), generator=generator) for each in lengths)
    facts = TextFacts(source="random", digest="x", sequences=count, tokens=sum(lengths))
    return Sequences(facts, ids, tuple(lengths))


def settings(method: str = "greedy", **changes: object) -> SearchSettings:
    given = {"drop": "1:4", "error_rate": 0.0, "batch_size": BATCH, "tokens": 192, **changes}
    return SearchSettings(method=method, **given)  # type: ignore[arg-type]


def search(
    method: str, *, layers: int = 6, journal: Path | None = None, **changes: object
) -> Search:
    chosen, loaded = settings(method, **changes), from_memory(tiny(layers), None)
    return search_model(loaded, some_text(), chosen, LoadSettings(), journal=journal)


@contextmanager
def trials(
    text: Sequences | None = None, *, layers: int = 6, **options: object
) -> Iterator[tuple[Trials, Skipper]]:
    loaded = from_memory(tiny(layers), None)
    with skipping(loaded, text or some_text(), batch_size=BATCH) as skipper:
        yield Trials(skipper, Journal(None, ""), **options), skipper  # type: ignore[arg-type]


def layers_of(record: Search) -> list[Removed]:
    return [
        tuple(layer for start, stop in point.removed for layer in range(start, stop))
        for point in record.frontier
    ]


class WholeForwards:
    """What each sequence says of a model that lacks layers, by a whole forward pass of it."""

    def __init__(self, model: PreTrainedModel, text: Sequences) -> None:
        self._model, self._text = model, text
        self._known: dict[Removed, tuple[Tensor, Tensor]] = {}

    def losses(self, removed: Removed) -> tuple[Tensor, Tensor]:
        """Mean next-token loss, and KL(whole ‖ lacking), by sequence."""
        if removed not in self._known:
            cut, found = lacking(self._model, removed), []
            for ids in self._text.sequences:
                p, q = (_log_probabilities(each, ids) for each in (self._model, cut))
                loss = -q.gather(1, ids[1:, None]).mean()
                found.append((loss, (p.exp() * (p - q)).sum(1).mean()))
            loss, divergence = zip(*found, strict=True)
            self._known[removed] = torch.stack(loss), torch.stack(divergence)
        return self._known[removed]

    def cost(
        self, removed: Removed, objective: str = "kl", batches: Iterable[int] | None = None
    ) -> float:
        values = self.losses(removed)[objective == "kl"]
        if batches is None:
            return float(values.mean())
        return float(torch.cat([values[n * BATCH : (n + 1) * BATCH] for n in batches]).mean())


def _log_probabilities(model: PreTrainedModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
    return functional.log_softmax(logits.double(), dim=-1)


class Landscape:
    """Stands in for trials: any function says what a choice costs."""

    def __init__(self, layers: int, cost: Callable[[Removed], float]) -> None:
        self.whole, self.batches, self.first_look = tuple(range(layers)), range(1), range(1)
        self._cost = cost
        self.seen: list[Removed] = []

    def start_from(self, removed: Removed) -> None:
        pass

    def without(self, removed: Removed) -> tuple[int, ...]:
        return tuple(layer for layer in self.whole if layer not in removed)

    def mean(self, removed: Removed, batches: object = None) -> float:
        self.measure([removed], batches)
        return self._cost(removed)

    def measure(self, candidates: Iterable[Removed], batches: object) -> None:
        self.seen += [each for each in candidates if each not in self.seen]

    def ranked(self, candidates: Sequence[Removed], batches: object) -> list[Removed]:
        return sorted(candidates, key=self.mean)

    def best_few(self, candidates: Iterable[Removed], count: int) -> list[Removed]:
        return self.ranked(list(dict.fromkeys(candidates)), None)[:count]

    def best(self, candidates: Iterable[Removed]) -> Removed:
        return self.best_few(candidates, 1)[0]

    def measured(self, count: int) -> list[Removed]:
        return self.ranked([each for each in self.seen if len(each) == count], None)

    def sample(self, tokens: int, generator: Random) -> list[int]:
        generator.sample(range(1), 1)
        return [0]


def asked(counts: Sequence[int], free: Sequence[int], **changes: object) -> Asked:
    return Asked(tuple(counts), tuple(free), settings(**changes))


def best_of_all(landscape: Landscape, free: Sequence[int], count: int) -> float:
    return min(landscape.mean(each) for each in itertools.combinations(free, count))

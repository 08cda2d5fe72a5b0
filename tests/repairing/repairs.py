"""Repairs of tiny models on a text of their own."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from depthcut.model.loading import LoadedModel
from depthcut.model.streaming import open_streamed
from depthcut.records import Plan, RepairRecord, TextFacts
from depthcut.repairing.repair import repair_checkpoint
from depthcut.settings import LoadSettings, RepairSettings
from depthcut.slicing import slice_checkpoint
from depthcut.text.sequences import Sequences
from tests.tiny import build_tiny, save_tiny, tiny_tokenizer

LOAD = LoadSettings(device="cpu")


def some_text(count: int = 24, longest: int = 40) -> Sequences:
    """Counting by ones, twos and threes, in sequences of uneven length."""
    ids = tuple(
        (7 * number + (1 + number % 3) * torch.arange(longest - number % 7)) % 60
        for number in range(count)
    )
    tokens = sum(len(each) for each in ids)
    facts = TextFacts(source="random", digest="text", sequences=count, tokens=tokens)
    return Sequences(facts, ids, (longest,) * count)


def saved(
    model_type: str, folder: Path, dtype: torch.dtype = torch.float64, *, uneven: bool = False
) -> Path:
    """A tiny model, by default in float64: so that a solve can be compared to many digits.

    Gains and biases are ones and zeros unless it is `uneven`.
    """
    model = build_tiny(model_type).to(dtype)
    generator = torch.Generator().manual_seed(0)
    for own in model.parameters() if uneven else ():
        if own.dim() == 1:
            own.data += 0.3 * torch.randn(own.shape, generator=generator)
    save_tiny(model, folder, max_shard_size=300_000)
    tiny_tokenizer(folder)
    return folder


def repaired(
    loaded: LoadedModel,
    plan: Plan,
    out: Path,
    *,
    method: str = "refit",
    text: Callable[[], Sequences] = some_text,
    streamed: bool = False,
    batch_size: int | None = None,
    force: bool = False,
) -> RepairRecord:
    assert loaded.folder is not None
    return repair_checkpoint(
        open_streamed(loaded.folder, LOAD) if streamed else loaded,
        plan,
        lambda _: text(),
        RepairSettings(method=method, batch_size=batch_size),
        load=LOAD,
        out=out,
        cut=partial(slice_checkpoint, loaded.folder, plan),
        force=force,
    )

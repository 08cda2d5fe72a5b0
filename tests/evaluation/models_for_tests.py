"""Tiny models and texts to judge them on."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from msgspec import structs
from transformers import PreTrainedModel

from depthcut.model.loading import LoadedModel, from_memory
from depthcut.records import TextFacts, TextPart
from depthcut.text.sequences import Sequences
from tests.tiny import build_tiny, tiny_tokenizer


def sequences_of(lengths: Sequence[int], *, seed: int = 0) -> Sequences:
    """Random bytes as tokens, each standing for one byte of text."""
    generator = torch.Generator().manual_seed(seed)
    ids = tuple(torch.randint(256, (length,), generator=generator) for length in lengths)
    facts = TextFacts(source="random", digest="d", sequences=len(ids), tokens=sum(lengths))
    return Sequences(facts, ids, tuple(length - 1 for length in lengths))


def mixed(lengths: Sequence[int], order: Sequence[int], *, texts: int = 2) -> Sequences:
    """The same, each sequence out of one of two texts."""
    found = sequences_of(lengths)
    parts = tuple(
        TextPart(
            source=name,
            digest=name,
            share=1 / texts,
            sequences=order.count(which),
            tokens=sum(
                length for length, part in zip(lengths, order, strict=True) if part == which
            ),
        )
        for which, name in enumerate(("first.txt", "second.txt")[:texts])
    )
    facts = structs.replace(found.facts, parts=parts, order=bytes(order) if texts > 1 else b"")
    return replace(found, facts=facts)


def changed(model: PreTrainedModel, amount: float, *, seed: int = 1) -> PreTrainedModel:
    """The model with noise on all its weights, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(amount * torch.randn(weight.shape, generator=generator))
    return model


def tiny(folder: Path, *, noise: float = 0.0, model_type: str = "llama") -> LoadedModel:
    model = build_tiny(model_type)
    if noise:
        changed(model, noise)
    return from_memory(model, tiny_tokenizer(folder), name=f"tiny with noise {noise}")

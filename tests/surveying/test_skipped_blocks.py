"""Losses without each block, against a model that really lacks it."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from depthcut.model import skipping
from tests.surveying.surveys_for_tests import make_sequences, per_sequence, survey
from tests.tiny import build_tiny

LAYERS = 6


def log_probabilities(model: PreTrainedModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
    return functional.log_softmax(logits.double(), dim=-1)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen3", "gemma2"])
def test_losses_are_those_of_a_model_without_the_block(model_type: str) -> None:
    model, sequences = build_tiny(model_type), make_sequences()
    found = survey(model, sequences, criteria=["loss-block", "kl-block"], largest_block=4)
    columns: dict[tuple[str, str], list[Tensor]] = {}
    for start in range(LAYERS):
        for stop in range(start + 1, min(start + 4, LAYERS) + 1):
            cut = copy.deepcopy(model)
            stack = cut.transformer if model_type == "gpt2" else cut.model
            name = "h" if model_type == "gpt2" else "layers"
            layers = list(getattr(stack, name))
            setattr(stack, name, torch.nn.ModuleList(layers[:start] + layers[stop:]))
            kinds = getattr(cut.config, "layer_types", None)
            if kinds:
                cut.config.layer_types = kinds[:start] + kinds[stop:]
            cut.config.num_hidden_layers = LAYERS - (stop - start)
            values: dict[tuple[str, str], list[float]] = {}
            for ids in sequences.sequences:
                p, q = log_probabilities(model, ids), log_probabilities(cut, ids)
                right = ids[1:, None]
                kl = (p.exp() * (p - q)).sum(dim=-1)
                for key, value in {
                    ("loss-block", "all"): (p - q).gather(1, right).mean(),
                    ("kl-block", "all"): kl.mean(),
                    ("kl-block", "last"): kl[-1],
                }.items():
                    values.setdefault(key, []).append(float(value))
            for key, column in values.items():
                columns.setdefault(key, []).append(torch.tensor(column, dtype=torch.float64))
    for (criterion, tokens), each in columns.items():
        scores = found.find(criterion, tokens)  # type: ignore[arg-type]  # last or all
        assert [len(row) for row in scores.mean] == [4, 4, 4, 3, 2, 1]
        expected = torch.stack(each, dim=1)
        torch.testing.assert_close(per_sequence(scores), expected, rtol=2e-3, atol=2e-5)


def test_each_block_costs_the_layers_behind_it_only(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = skipping.Skipper.__init__

    def remember(self: skipping.Skipper, *arguments: object) -> None:
        original(self, *arguments)  # type: ignore[arg-type]
        made.append(self)

    monkeypatch.setattr(skipping.Skipper, "__init__", remember)
    sequences = make_sequences()
    survey(build_tiny("llama"), sequences, criteria=["loss-block"], largest_block=3)
    blocks = [(a, b) for a in range(LAYERS) for b in range(a + 1, min(a + 3, LAYERS) + 1)]
    layers = LAYERS + sum(LAYERS - stop for _, stop in blocks)
    assert made[0].work.layers == layers * len(sequences.sequences)
    assert made[0].work.heads == (len(blocks) + 1) * len(sequences.sequences)


def test_nothing_of_a_batch_is_kept_once_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = skipping.KeptStates.__init__

    def remember(self: skipping.KeptStates, memory_bytes: int) -> None:
        original(self, memory_bytes)
        made.append((self, memory_bytes))

    monkeypatch.setattr(skipping.KeptStates, "__init__", remember)
    survey(build_tiny("llama"), make_sequences(), criteria=["kl-block"])
    kept, memory_bytes = made[0]
    assert list(kept) == []
    assert kept.left_bytes == memory_bytes

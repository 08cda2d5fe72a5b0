"""Gradients by gates against differences, and against the exact Fisher matrix."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from depthcut.model.gates import gate_gradients
from depthcut.model.loading import find_layers, from_memory
from depthcut.model.some_layers import running_some_layers
from depthcut.text.sequences import Batch, padded
from tests.tiny import build_tiny

LAYERS = 6
GENERATOR = torch.Generator().manual_seed(0)
SEQUENCES = [torch.randint(0, 256, (length,), generator=GENERATOR) for length in (9, 6, 2)]


def precise(model_type: str) -> PreTrainedModel:
    return copy.deepcopy(build_tiny(model_type)).double()


def gradients(model: PreTrainedModel, batch: Batch, **options: int) -> Tensor:
    loaded = from_memory(model, None)
    with running_some_layers(loaded) as run:
        return gate_gradients(run, loaded, batch, **{"directions": 1, "seed": 0, **options})


@contextmanager
def gated(model: PreTrainedModel, gates: Sequence[float]) -> Iterator[None]:
    def scale(gate: float) -> object:
        def hook(_: nn.Module, args: tuple, kwargs: dict, output: object) -> object:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            state = before + gate * (after - before)
            return (state, *output[1:]) if isinstance(output, tuple) else state

        return hook

    hooks = [
        layer.register_forward_hook(scale(gate), with_kwargs=True)
        for layer, gate in zip(find_layers(model), gates, strict=True)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def logits(model: PreTrainedModel, ids: Tensor, gates: Sequence[float]) -> Tensor:
    with gated(model, gates), torch.no_grad():
        found: Tensor = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
    return found


def slopes(model: PreTrainedModel, ids: Tensor, step: float = 3e-3) -> Tensor:
    """Of the logits by each gate, (layers, tokens, vocabulary)."""
    found = []
    for layer in range(LAYERS):
        ends = [[1.0 + sign * step * (layer == each) for each in range(LAYERS)] for sign in (1, -1)]
        above, below = (logits(model, ids, gates) for gates in ends)
        found.append((above - below) / (2 * step))
    return torch.stack(found)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
def test_the_first_are_the_slopes_of_each_sequences_loss(model_type: str) -> None:
    model = precise(model_type)
    found = gradients(model, padded(SEQUENCES))
    assert found.shape == (3, 2, LAYERS)
    for row, ids in zip(found, SEQUENCES, strict=True):
        scores = logits(model, ids, [1.0] * LAYERS)
        error = functional.softmax(scores, dim=-1)
        error[range(len(ids) - 1), ids[1:]] -= 1
        expected = (slopes(model, ids) * error / (len(ids) - 1)).sum((1, 2))
        torch.testing.assert_close(row[0], expected, rtol=1e-3, atol=1e-5)


def test_random_directions_have_the_fisher_matrix_for_their_mean_square() -> None:
    model, (ids, *_) = precise("llama"), SEQUENCES
    model.get_output_embeddings().weight.data *= 6  # few tokens are likely
    found = gradients(model, padded([ids]), directions=1500)[0, 1:]
    p = functional.softmax(logits(model, ids, [1.0] * LAYERS), dim=-1)
    by_gate = slopes(model, ids)
    centred = by_gate - (by_gate * p).sum(-1, keepdim=True)
    fisher = torch.einsum("itv,jtv,tv->ij", centred, centred, p) / (len(ids) - 1)
    scale = fisher.diagonal().sqrt()
    difference = (found.T @ found / len(found) - fisher) / (scale[:, None] * scale)
    assert difference.abs().max() < 0.12  # three standard errors
    # Half of it is what the divergence grows by where gates close a little.
    gates = torch.tensor([1.0, 0.99, 1.0, 0.98, 1.0, 0.99], dtype=torch.float64)
    q = functional.log_softmax(logits(model, ids, gates.tolist()), dim=-1)
    divergence = (p * (p.log() - q)).sum(-1).mean().item()
    assert ((1 - gates) @ fisher @ (1 - gates)).item() / 2 == pytest.approx(divergence, rel=0.05)


def test_the_same_seed_gives_the_same_and_parts_of_a_batch_the_same_losses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batch = precise("llama"), padded(SEQUENCES)
    once = gradients(model, batch, seed=3, directions=2)
    assert torch.equal(once, gradients(model, batch, seed=3, directions=2))
    assert not torch.equal(once[:, 1:], gradients(model, batch, seed=4, directions=2)[:, 1:])
    monkeypatch.setattr("depthcut.model.gates._MOST_TOKENS", 9)  # one sequence at a time
    again = gradients(model, batch, seed=3, directions=2)
    torch.testing.assert_close(again[:, 0], once[:, 0])


def test_weights_want_and_have_what_they_had() -> None:
    model = precise("llama")
    wanted = [name for name, each in model.named_parameters() if "q_proj" in name]
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in wanted)
    gradients(model, padded(SEQUENCES))
    assert [name for name, each in model.named_parameters() if each.requires_grad] == wanted
    assert all(weight.grad is None for weight in model.parameters())

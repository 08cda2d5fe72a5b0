"""How a model's predictions change as layers are faded out: gradients by one gate a layer.

A gate scales what its layer adds to the residual stream: 1 as it is, 0 without the layer. Only
states are differentiated, never weights.
"""

import contextlib
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from depthcut.model.loading import LoadedModel
from depthcut.model.some_layers import RunSomeLayers
from depthcut.text.sequences import Batch

_MOST_TOKENS = 2048
"""In a forward pass, whose every activation is kept."""


def gate_gradients(
    run: RunSomeLayers, loaded: LoadedModel, batch: Batch, *, directions: int, seed: int
) -> Tensor:
    """Gradients by the gates: of each sequence's loss, and of its predictions in random directions.

    With g a gradient in a random direction, the mean of g gᵀ is the Hessian by the gates of
    KL(untouched ‖ gated), mean over the tokens of a sequence, where all gates are 1: the
    Gauss–Newton or Fisher matrix. A direction is a random vector v with mean vvᵀ of
    diag(p) - ppᵀ at each token, of the next-token distribution p: (v = √p ∘ e - p √p·e for normal
    e), so that tokens do not mix in the mean.

    One forward pass, and a backward pass for the loss and for each direction.

    Args:
        run: Runs the model in part, see `running_some_layers`.
        loaded: The model that it runs.
        batch: Sequences, at least 2 tokens each.
        directions: How many.
        seed: Of the directions.

    Returns:
        Shape (sequences, 1 + directions, layers), float64 on the CPU: first that of the mean
        next-token loss in nats, then those in the directions.
    """
    generator = torch.Generator(loaded.device).manual_seed(seed)
    rows = max(1, _MOST_TOKENS // batch.ids.shape[1])
    with torch.inference_mode(False), torch.enable_grad(), _weights_at_rest(loaded.model):
        parts = [
            _of_part(run, loaded, Batch(ids, mask), directions, generator)
            for ids, mask in zip(
                torch.split(batch.ids, rows), torch.split(batch.mask, rows), strict=True
            )
        ]
    return torch.cat(parts)


def _of_part(
    run: RunSomeLayers,
    loaded: LoadedModel,
    batch: Batch,
    directions: int,
    generator: torch.Generator,
) -> Tensor:
    states: list[Tensor] = []

    def see_last(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
        states.append(output if isinstance(output, Tensor) else output[0])

    with torch.no_grad():
        embedded = run(batch.ids, (), head=False)
    with contextlib.ExitStack() as stack:
        stack.callback(loaded.layers[-1].register_forward_hook(see_last).remove)
        logits = run(
            batch.ids,
            range(len(loaded.layers)),
            entering=embedded.detach().requires_grad_(),
            observe=lambda _, state: states.append(state),
        )
    steps = [
        _precise(after.detach().to(before.device) - before.detach())
        for before, after in pairwise(states)
    ]
    found = []
    for number, direction in enumerate(_directions(logits, batch, directions, generator)):
        gradients = torch.autograd.grad(
            logits, states[1:], direction, retain_graph=number < directions
        )
        by_gate = [
            (step * _precise(gradient).to(step.device)).flatten(1).sum(1).cpu()
            for step, gradient in zip(steps, gradients, strict=True)
        ]
        found.append(torch.stack(by_gate, dim=1))
    return torch.stack(found, dim=1)


def _precise(values: Tensor) -> Tensor:
    on_mps = values.device.type == "mps"  # no float64 there
    return (values.cpu() if on_mps else values).double()


def _directions(
    logits: Tensor, batch: Batch, count: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """What each backward pass begins with: that of the loss, then random ones."""
    predicting = torch.zeros_like(batch.mask)
    predicting[:, :-1] = batch.mask[:, 1:]
    lengths = predicting.sum(1)[:, None, None].to(logits.device)
    predicting = predicting[..., None].to(logits.device)
    probabilities = functional.softmax(logits.detach().float(), dim=-1)
    targets = functional.pad(batch.ids[:, 1:], (0, 1)).to(logits.device)
    loss = probabilities.clone()
    loss.scatter_add_(2, targets[..., None], -torch.ones_like(loss[..., :1]))
    yield (loss * predicting / lengths).to(logits.dtype)
    del loss
    roots = probabilities.sqrt()
    for _ in range(count):
        noise = torch.empty_like(roots).normal_(generator=generator).mul_(roots)
        noise -= probabilities * noise.sum(-1, keepdim=True)
        yield (noise * predicting / lengths.sqrt()).to(logits.dtype)


@contextlib.contextmanager
def _weights_at_rest(model: nn.Module) -> Iterator[None]:
    """A context in which no weight wants a gradient, so that nothing is kept for one."""
    wanting = [each for each in model.parameters() if each.requires_grad]
    for weight in wanting:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in wanting:
            weight.requires_grad_(True)

"""What attention and MLP of each layer do to the residual stream, each by itself.

A layer whose MLP is silent leaves the state between its two parts, whatever its own code does.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from depthcut.errors import ArchitectureError
from depthcut.measures import DepthPairs
from depthcut.model.loading import LoadedModel
from depthcut.model.ranks import ALONE, Ranks
from depthcut.model.sublayers import Silence, silencing
from depthcut.progress import progress
from depthcut.records import PARTS
from depthcut.settings import Tokens
from depthcut.surveying.criteria import Criterion
from depthcut.surveying.scores import Rows
from depthcut.text.sequences import Batch, Sequences

_TOKENS_AT_ONCE = 512

_See = Callable[[int, tuple[Tensor, Tensor, Tensor]], None]
"""Told of each layer what enters it, what leaves its attention, and what leaves its MLP."""


def part_rows(
    loaded: LoadedModel,
    sequences: Sequences,
    criteria: Mapping[str, Criterion],
    ranks: Ranks = ALONE,
    *,
    batch_size: int,
) -> Rows:
    """Scores by criteria that need the states around attention or MLP.

    One more forward pass, in which the attention of each layer runs twice.

    Args:
        loaded: The model; restored at the end.
        sequences: The text.
        criteria: All that are asked for; those that need something else are passed over.
        ranks: The processes that share the batches.
        batch_size: Sequences in a forward pass.

    Raises:
        ArchitectureError: Layers that are more than one attention and one MLP.
    """
    asked = {name: each for name, each in criteria.items() if each.needs == "part"}
    rows: Rows = {(name, at): [] for name, each in asked.items() for at in each.tokens}
    if not asked:
        return rows
    found: dict[int, dict[tuple[str, Tokens], Tensor]] = {}
    with (
        _naming(asked),
        silencing(loaded) as silence,
        progress("survey: attention and MLP", sequences.facts.tokens) as advance,
    ):
        for number, batch in enumerate(sequences.batches(batch_size)):
            if ranks.takes(number):
                found[number] = _of_batch(loaded, batch, silence, asked)
                advance(int(batch.mask.sum()) * ranks.count)
    for each in ranks.in_order(found).values():
        for key, values in each.items():
            rows[key] += values.unbind()
    return rows


def _of_batch(
    loaded: LoadedModel, batch: Batch, silence: Silence, asked: Mapping[str, Criterion]
) -> dict[tuple[str, Tokens], Tensor]:
    """By criterion and tokens, (sequences, layers) float64 on the CPU."""
    lengths = batch.mask.sum(dim=1).tolist()
    scores: dict[tuple[str, Tokens], Tensor] = {
        (name, at): torch.zeros(len(lengths), len(loaded.layers), dtype=torch.float64)
        for name, each in asked.items()
        for at in each.tokens
    }

    def see(layer: int, states: tuple[Tensor, Tensor, Tensor]) -> None:
        for name, criterion in asked.items():
            first = PARTS.index("mlp" if criterion.scope == "mlp" else "attention")
            before, after = states[first : first + 2]
            for row, length in enumerate(lengths):
                values = _scores(criterion, before[row, :length], after[row, :length])
                for at in criterion.tokens:
                    scores[name, at][row, layer] = values[-1] if at == "last" else values.mean()

    with _seeing_between(loaded, silence, see):
        loaded.backbone(input_ids=batch.ids.to(loaded.device), use_cache=False)
    return scores


def _scores(criterion: Criterion, before: Tensor, after: Tensor) -> Tensor:
    """Of each token, (tokens,)."""
    pairs = zip(*(torch.split(each, _TOKENS_AT_ONCE) for each in (before, after)), strict=True)
    return torch.cat([criterion.function(DepthPairs.of(each))[:, 0] for each in pairs]).cpu()


@contextlib.contextmanager
def _seeing_between(loaded: LoadedModel, silence: Silence, see: _See) -> Iterator[None]:
    """A context in which each layer runs once more without its MLP."""
    with contextlib.ExitStack() as stack:
        for index, layer in enumerate(loaded.layers):

            def hook(
                module: nn.Module, args: Any, kwargs: Any, output: Any, index: int = index
            ) -> None:
                silence({(index, "mlp")})
                between = module.forward(*args, **kwargs)
                silence(())
                entering = args[0] if args else kwargs["hidden_states"]
                see(index, (entering, _state(between), _state(output)))

            stack.callback(layer.register_forward_hook(hook, with_kwargs=True).remove)
        yield


def _state(output: Any) -> Tensor:
    state: Tensor = output if isinstance(output, Tensor) else output[0]
    return state


@contextlib.contextmanager
def _naming(asked: Mapping[str, Criterion]) -> Iterator[None]:
    """Say which criteria cannot be had."""
    try:
        yield
    except ArchitectureError as error:
        raise ArchitectureError(f"{error}: leave {', '.join(asked)} out of --criteria") from error

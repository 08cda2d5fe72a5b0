"""What the weights of each layer say, alone and with their gradients."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from depthcut.errors import SettingsError
from depthcut.model.loading import LoadedModel, in_eval_mode
from depthcut.model.ranks import ALONE, Ranks
from depthcut.progress import progress
from depthcut.surveying.criteria import Criterion
from depthcut.surveying.scores import Rows
from depthcut.text.sequences import Sequences

_Weigh = Callable[[Tensor, Tensor], Tensor]


def refuse_weights(loaded: LoadedModel, criteria: Mapping[str, Criterion]) -> None:
    """Refuse a model whose weights, or their gradients, are not there as numbers.

    Raises:
        SettingsError: A criterion needs them, and they are quantised, offloaded, or float16.
    """
    asked = [name for name, each in criteria.items() if each.needs in ("weights", "gradients")]
    if not asked:
        return
    weights = list(loaded.layers.parameters())
    packed = any(not each.is_floating_point() or each.dtype.itemsize < 2 for each in weights)
    if packed or getattr(loaded.model, "hf_quantizer", None) is not None:
        raise SettingsError(
            f"{asked[0]} needs the weights themselves, and those of {loaded.facts.source} are "
            f"quantised: load it without --load-in-4bit, or survey the model that it was made "
            f"of, or leave {', '.join(asked)} out of --criteria"
        )
    if any(each.is_meta for each in weights):
        raise SettingsError(
            f"{asked[0]} needs the weights themselves, and some of {loaded.facts.source} do not "
            f"fit its device: choose another --device, or leave {', '.join(asked)} out of "
            "--criteria"
        )
    by_gradient = [name for name in asked if criteria[name].needs == "gradients"]
    if by_gradient and any(each.dtype == torch.float16 for each in weights):
        raise SettingsError(
            f"{by_gradient[0]}: small gradients vanish in float16; choose --dtype bfloat16 or "
            "float32"
        )


def weight_rows(
    layers: Iterable[nn.Module], sequences: int, criteria: Mapping[str, Criterion]
) -> Rows:
    """Scores by criteria that need the weights alone: the same for each sequence."""
    by_name: dict[str, list[Tensor]] = {
        name: [] for name, each in criteria.items() if each.needs == "weights"
    }
    for layer in layers if by_name else ():
        for name, score in weight_scores(layer, criteria).items():
            by_name[name].append(score)
    return {(name, "all"): [torch.stack(scores)] * sequences for name, scores in by_name.items()}


def weight_scores(layer: nn.Module, criteria: Mapping[str, Criterion]) -> dict[str, Tensor]:
    """What those criteria say of one layer, float64 on the CPU."""
    return {
        name: torch.stack(
            [each.function(weight.detach()).cpu() for weight in layer.parameters()]
        ).sum()
        for name, each in criteria.items()
        if each.needs == "weights"
    }


def gradient_rows(
    loaded: LoadedModel,
    sequences: Sequences,
    criteria: Mapping[str, Criterion],
    ranks: Ranks = ALONE,
) -> Rows:
    """Scores by criteria that need the gradients of the mean next-token loss of each sequence.

    One forward and backward pass a sequence, whatever the batch size, since gradients of a batch
    come summed. Each weight's gradient is freed once it is scored, so that one at a time exists.
    Several processes take the sequences in turn.
    """
    wanted = {name: each.function for name, each in criteria.items() if each.needs == "gradients"}
    rows: Rows = {(name, "all"): [] for name in wanted}
    if not wanted:
        return rows
    found: dict[int, dict[str, Tensor]] = {}
    scores = {name: torch.zeros(len(loaded.layers), dtype=torch.float64) for name in wanted}
    with (
        progress("survey: gradients", sequences.facts.tokens) as advance,
        _scoring_gradients(loaded, wanted, scores),
    ):
        for number, sequence in enumerate(sequences.sequences):
            if not ranks.takes(number):
                continue
            ids = sequence.to(loaded.device)
            logits = loaded.model(input_ids=ids[None], use_cache=False).logits[0, :-1]
            exact = logits if logits.dtype == torch.float64 else logits.float()
            torch.autograd.backward(functional.cross_entropy(exact, ids[1:].to(exact.device)))
            found[number] = {name: score.clone() for name, score in scores.items()}
            for score in scores.values():
                score.zero_()
            advance(len(ids) * ranks.count)
    for each in ranks.in_order(found).values():
        for name, row in each.items():
            rows[name, "all"].append(row)
    return rows


@contextlib.contextmanager
def _scoring_gradients(
    loaded: LoadedModel, functions: Mapping[str, _Weigh], scores: Mapping[str, Tensor]
) -> Iterator[None]:
    """A context in which a backward pass adds to scores; all of the model is restored."""
    layers_of: dict[nn.Parameter, list[int]] = {}
    for index, layer in enumerate(loaded.layers):
        for weight in layer.parameters():  # one that layers share counts in each
            layers_of.setdefault(weight, []).append(index)
    before = [(each, each.requires_grad, each.grad) for each in loaded.model.parameters()]

    def score(weight: Tensor) -> None:
        gradient, weight.grad = weight.grad, None
        if gradient is None:
            return
        for name, function in functions.items():
            value = function(weight.detach(), gradient).cpu()
            for index in layers_of[weight]:  # type: ignore[index]  # a parameter
                scores[name][index] += value

    with contextlib.ExitStack() as stack:
        # Not in inference mode, which the evaluation mode brings: autograd must see the weights.
        for context in (in_eval_mode(loaded.model), torch.inference_mode(False)):
            stack.enter_context(context)
        stack.enter_context(torch.enable_grad())
        stack.callback(_restore, before)
        for weight, _, _ in before:
            weight.grad = None
            weight.requires_grad_(weight in layers_of)
        for weight in layers_of:
            hook = weight.register_post_accumulate_grad_hook(score)  # type: ignore[no-untyped-call]
            stack.callback(hook.remove)
        yield


def _restore(before: list[tuple[nn.Parameter, bool, Tensor | None]]) -> None:
    for weight, required, gradient in before:
        weight.requires_grad_(required)
        weight.grad = gradient

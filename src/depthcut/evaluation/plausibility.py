"""How plausible a model finds texts that others wrote: their perplexity, given their prompts."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from depthcut.errors import CheckpointError, SettingsError
from depthcut.evaluation.estimates import perplexity, ratio_estimate
from depthcut.evaluation.generation import Generation
from depthcut.evaluation.quality import vocabulary_size
from depthcut.model.batching import fitting_batch_size
from depthcut.model.loading import LoadedModel, in_eval_mode
from depthcut.model.positions import learned_positions
from depthcut.predictions import CHUNK_BYTES, token_losses
from depthcut.progress import progress
from depthcut.records import Estimate


def reference_perplexity(loaded: LoadedModel, generations: Sequence[Generation]) -> Estimate | None:
    """Perplexity of generations under a model, each given its prompt; the error is over prompts.

    exp of the mean loss over all generated tokens, the token that ends a text not among them.
    Low is not good by itself: a loop is easy to predict.

    Args:
        loaded: The model whose judgement it is, with the same vocabulary as the one that wrote.
        generations: One for each prompt; those without tokens do not count.

    Returns:
        None where fewer than two generations have any token: the error is unknown.

    Raises:
        CheckpointError: A loss is not a finite number.
        SettingsError: A prompt with what follows exceeds the positions the model has learned.
    """
    written = [each for each in generations if each.ids]
    if len(written) < 2:
        return None
    losses = losses_under(
        loaded, [each.prompt_ids for each in written], [each.ids for each in written]
    )
    return perplexity(ratio_estimate(losses, torch.tensor([len(each.ids) for each in written])))


def losses_under(
    loaded: LoadedModel,
    prompts_ids: Sequence[Sequence[int]],
    generations_ids: Sequence[Sequence[int]],
    *,
    batch_size: int | None = None,
) -> Tensor:
    """What each generation costs a model that has read its prompt.

    Args:
        loaded: The model.
        prompts_ids: The tokens before each generation, at least one.
        generations_ids: The tokens whose losses count; none cost nothing.
        batch_size: Texts in one batch; None: as many as fit in memory.

    Returns:
        Nats, summed over the tokens of each generation, shape (generations,), float64 on the CPU.

    Raises:
        CheckpointError: A loss is not a finite number.
        SettingsError: A prompt with its generation exceeds the positions the model has learned.
        ValueError: A prompt is empty, so nothing predicts the first token; or there are not as
            many prompts as generations.
    """
    pairs = list(zip(prompts_ids, generations_ids, strict=True))
    if not all(prompt for prompt, _ in pairs):
        raise ValueError("an empty prompt: expected at least one token before each generation")
    longest = max((len(prompt) + len(new) for prompt, new in pairs), default=0)
    limit = learned_positions(loaded)
    if limit is not None and longest > limit:
        raise SettingsError(
            f"a prompt and what was written after it have {longest} tokens, {loaded.facts.source} "
            f"has {limit} positions to judge it by: lower --new-tokens or give shorter prompts"
        )
    losses = torch.zeros(len(pairs), dtype=torch.float64)
    step = batch_size or _batch_size(loaded, longest)
    with (
        progress("evaluate: plausibility", len(pairs), unit="generations") as advance,
        torch.inference_mode(),
        in_eval_mode(loaded.model),
    ):
        for start in range(0, len(pairs), step):
            batch = pairs[start : start + step]
            losses[start : start + step] = _batch_losses(loaded, batch)
            advance(len(batch))
    if not losses.isfinite().all():
        raise CheckpointError(
            f"the loss of {loaded.facts.source} on a generation is not a finite number: its "
            "weights are broken, or overflow in this type; try --dtype float32"
        )
    return losses


def _batch_losses(
    loaded: LoadedModel, batch: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> Tensor:
    ids = pad_sequence([torch.tensor([*prompt, *new]) for prompt, new in batch], batch_first=True)
    # No mask: padding stands on the right, where causal attention never looks back from.
    logits: Tensor = loaded.model(input_ids=ids.to(loaded.device), use_cache=False).logits
    sums = []
    for row, (prompt, new) in enumerate(batch):
        stop = len(prompt) + len(new)
        targets = ids[row, len(prompt) : stop].to(logits.device)
        losses = token_losses(logits[row, len(prompt) - 1 : stop - 1], targets)
        sums.append(math.fsum(losses.tolist()))
    return torch.tensor(sums, dtype=torch.float64)


def _batch_size(loaded: LoadedModel, longest: int) -> int:
    width = vocabulary_size(loaded) * next(loaded.model.parameters()).element_size()
    kept = width + 4 * CHUNK_BYTES // max(longest, 1)  # logits, softmax chunks
    return fitting_batch_size(loaded, max(longest, 1), bytes_per_token=kept)

"""What the model's predictions lose when a block is skipped: every block, one after the other.

What enters a block does not depend on whether it is skipped: the states of the whole model are
computed once for a batch, and each block costs only the layers behind it and the head.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from depthcut.model.loading import LoadedModel
from depthcut.model.ranks import ALONE, Ranks
from depthcut.model.skipping import skipping
from depthcut.progress import progress
from depthcut.settings import Tokens
from depthcut.surveying.criteria import Criterion, blocks_up_to
from depthcut.surveying.scores import Rows
from depthcut.text.sequences import Sequences


def loss_rows(
    loaded: LoadedModel,
    sequences: Sequences,
    criteria: Mapping[str, Criterion],
    ranks: Ranks = ALONE,
    *,
    largest: int,
    batch_size: int | None,
) -> Rows:
    """Scores by criteria that need the losses without each block.

    Args:
        loaded: The model; restored at the end.
        sequences: The text.
        criteria: All that are asked for; those that need something else are passed over.
        ranks: The processes that share the batches.
        largest: Layers in the largest block.
        batch_size: Sequences in a forward pass; None: chosen from the memory at hand.

    Raises:
        ArchitectureError: The model cannot be run in part.
    """
    asked = {name: each for name, each in criteria.items() if each.needs == "losses"}
    rows: Rows = {(name, at): [] for name, each in asked.items() for at in each.tokens}
    if not asked:
        return rows
    blocks = blocks_up_to(len(loaded.layers), largest)
    with (
        skipping(loaded, sequences, batch_size=batch_size) as skipper,
        progress("survey: blocks skipped", sequences.facts.tokens * len(blocks)) as advance,
    ):
        found: dict[int, dict[tuple[str, Tokens], Tensor]] = {}
        for number, batch in enumerate(skipper.batches):
            if not ranks.takes(number):
                continue
            whole, cut = skipper.measure(skipper.whole, number), []
            for start, stop in blocks:
                cut.append(skipper.measure(skipper.whole[:start] + skipper.whole[stop:], number))
                advance(int(batch.mask.sum()) * ranks.count)
            found[number] = {
                (name, at): torch.stack(
                    [asked[name].function(each, whole, at) for each in cut], dim=1
                )
                for name, at in rows
            }
            skipper.forget(number)
    for each in ranks.in_order(found).values():
        for key, values in each.items():
            rows[key] += values.unbind()
    return rows

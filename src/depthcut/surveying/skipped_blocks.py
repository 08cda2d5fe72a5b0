"""What the model's predictions lose when a block is skipped: every block, one after the other.

What enters a block does not depend on whether it is skipped: the states of the whole model are
computed once for a batch, and each block costs only the layers behind it and the head.
"""

from collections.abc import Mapping

import torch

from depthcut.model.loading import LoadedModel
from depthcut.model.skipping import skipping
from depthcut.progress import progress
from depthcut.surveying.criteria import Criterion, blocks_up_to
from depthcut.surveying.scores import Rows
from depthcut.text.sequences import Sequences


def loss_rows(
    loaded: LoadedModel,
    sequences: Sequences,
    criteria: Mapping[str, Criterion],
    *,
    largest: int,
    batch_size: int | None,
) -> Rows:
    """Scores by criteria that need the losses without each block.

    Args:
        loaded: The model; restored at the end.
        sequences: The text.
        criteria: All that are asked for; those that need something else are passed over.
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
        for number, batch in enumerate(skipper.batches):
            whole, cut = skipper.measure(skipper.whole, number), []
            for start, stop in blocks:
                cut.append(skipper.measure(skipper.whole[:start] + skipper.whole[stop:], number))
                advance(int(batch.mask.sum()))
            for name, at in rows:
                found = [asked[name].function(each, whole, at) for each in cut]
                rows[name, at] += torch.stack(found, dim=1).unbind()
            skipper.forget(number)
    return rows

"""A plan and a survey in the words of other tools: mergekit's YAML, PruneMe's CSV."""

import csv
import io

from depthcut.errors import SettingsError
from depthcut.records import Plan, Scores


def mergekit_yaml(plan: Plan, *, model: str | None = None) -> str:
    """The plan's cut as a mergekit passthrough configuration.

    mergekit lists what stays, in `layer_range`s that are half open and counted from 0, so
    [0, 12] keeps layers 0 to 11. No dtype is set: every tensor keeps its own.

    Args:
        plan: Which layers go.
        model: What mergekit shall load, a folder or hub id; default: as the plan names it.

    Raises:
        SettingsError: The plan takes parts of layers.
    """
    import yaml

    if plan.zeroed:
        raise SettingsError(
            f"the plan takes {plan.zeroed_words} from layers that stay, and mergekit's slices are "
            "of whole layers: leave --mergekit out"
        )
    source = plan.model.source if model is None else model
    configuration = {
        "slices": [
            {"sources": [{"model": each.model or source, "layer_range": [each.start, each.stop]}]}
            for each in plan.slices
        ],
        "merge_method": "passthrough",
    }
    comment = (
        f"# {plan.model.layers} layers {plan.change}.\n"
        "# layer_range is half open and counted from 0: [0, 2] keeps layers 0 and 1.\n"
    )
    body: str = yaml.safe_dump(
        configuration, sort_keys=False, default_flow_style=None, allow_unicode=True
    )
    return comment + body


def survey_csv(scores: Scores, size: int | None = None) -> str:
    """Scores as PruneMe's layer_distances.csv: block_start,block_end,average_distance.

    The counting is the same as ours. PruneMe says that its numbers count from 1, but it drops
    the first hidden state before it counts, so its row (b, b + n) compares depth b with depth
    b + n: removing layers b to b + n - 1 counted from 0, the block [b, b + n). block_end is
    the first layer that stays, as in a mergekit layer_range.

    The rows of `angular` differ in two ways: PruneMe has none for blocks that start at layer 0
    (the dropped state), and its row that ends at the last layer compares with the state after
    the final norm, ours with the state before it. Those of `pruneme` are its own.

    Args:
        scores: Any criterion; a criterion of single layers gives blocks of one.
        size: Only blocks of so many layers, as PruneMe writes; default: all, by size.

    Raises:
        SettingsError: The criterion has no blocks of that size.
    """
    largest = max(len(row) for row in scores.mean)
    if size is not None and not 1 <= size <= largest:
        sizes = "single layers only" if largest == 1 else f"blocks of 1 to {largest} layers"
        raise SettingsError(f"block size {size}: {scores.criterion} scores {sizes}")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("block_start", "block_end", "average_distance"))
    for chosen in range(1, largest + 1) if size is None else (size,):
        for start, row in enumerate(scores.mean):
            if chosen <= len(row):
                writer.writerow((start, start + chosen, repr(row[chosen - 1])))
    return text.getvalue()

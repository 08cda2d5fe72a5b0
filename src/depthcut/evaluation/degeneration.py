"""What is wrong with free text: it repeats itself, says little, never ends, leaves the first model.

Plain Python on token ids: importing it loads no torch.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from depthcut.evaluation.pairing import mean_estimate
from depthcut.records import Degeneration, Estimate

if TYPE_CHECKING:
    from depthcut.evaluation.generation import Generation


def degeneration_of(
    generations: Sequence["Generation"],
    first: Sequence["Generation"] | None = None,
    *,
    reference_perplexity: Estimate | None = None,
) -> Degeneration | None:
    """One model's generations as numbers; means and errors over prompts.

    Args:
        generations: One for each prompt.
        first: The first model's, of the same prompts; None where this is the first, or where the
            models' tokens do not mean the same.
        reference_perplexity: Of the generations under the first model, see `plausibility`.

    Returns:
        None for fewer than two prompts: their spread, and so every error, is unknown.

    Raises:
        ValueError: The first model's are of other prompts, by their number.
    """
    if first is not None and len(first) != len(generations):
        raise ValueError(
            f"{len(first)} and {len(generations)} generations: expected the same prompts"
        )
    if len(generations) < 2:
        return None
    texts = [each.ids for each in generations]
    agreement = None
    if first is not None:
        both = zip(first, texts, strict=True)
        agreement = mean_estimate([token_agreement(before.ids, after) for before, after in both])
    return Degeneration(
        tokens=mean_estimate([len(ids) for ids in texts]),
        unfinished=mean_estimate([not each.ended for each in generations]),
        repetition=mean_estimate([repetition(ids) for ids in texts]),
        distinct_1=distinct(texts, 1),
        distinct_2=distinct(texts, 2),
        agreement=agreement,
        reference_perplexity=reference_perplexity,
    )


def repetition(ids: Sequence[int], size: int = 4) -> float:
    """The share of a text's n-grams that came before in it: 0 none, near 1 a loop.

    seq-rep-n of Welleck et al., Neural Text Generation with Unlikelihood Training
    (arXiv:1908.04319): 1 - different n-grams / n-grams. A text without n-grams repeats none: 0.
    """
    grams = list(_grams(ids, size))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(texts: Iterable[Sequence[int]], size: int) -> float:
    """Different n-grams over all n-grams, of all texts together: 1 none twice, near 0 always one.

    distinct-n of Li et al., A Diversity-Promoting Objective Function (arXiv:1510.03055), who
    divide by the number of tokens: the same for n = 1, else by a token or so of each text more.
    Texts without n-grams are not diverse: 0. It falls as texts grow longer; compare it with that
    of other models on the same prompts only.
    """
    grams = list(chain.from_iterable(_grams(ids, size) for ids in texts))
    return len(set(grams)) / len(grams) if grams else 0.0


def token_agreement(before: Sequence[int], after: Sequence[int]) -> float:
    """1 - edit distance / tokens of the longer text: 1 the same text, 0 nothing of it.

    Two empty texts are the same.
    """
    longer = max(len(before), len(after))
    return 1 - edit_distance(before, after) / longer if longer else 1.0


def edit_distance(before: Sequence[int], after: Sequence[int]) -> int:
    """The least number of tokens to insert, delete or replace to make one text the other.

    Levenshtein's distance by Myers' bit vectors (J. ACM 46, 1999) as Hyyrö writes them: a column
    of the table of distances is two numbers with a bit for each token of `before`, those where the
    distance to the cell above grows and those where it falls; so a token of `after` takes a few
    operations on long integers instead of one for each token of `before`.
    """
    if not before:
        return len(after)
    places: dict[int, int] = {}
    for place, token in enumerate(before):
        places[token] = places.get(token, 0) | 1 << place
    every, last = (1 << len(before)) - 1, 1 << (len(before) - 1)
    grows, falls, distance = every, 0, len(before)
    for token in after:
        same = places.get(token, 0)
        diagonal = (((same & grows) + grows) ^ grows) | same | falls
        right_grows = (falls | ~(diagonal | grows)) & every
        right_falls = grows & diagonal
        distance += bool(right_grows & last) - bool(right_falls & last)
        right_grows = right_grows << 1 | 1
        right_falls <<= 1
        grows = (right_falls | ~(diagonal | right_grows)) & every
        falls = right_grows & diagonal & every
    return distance


def _grams(ids: Sequence[int], size: int) -> Iterable[tuple[int, ...]]:
    return zip(*(ids[start:] for start in range(size)), strict=False)

"""What is measured of all models at once, as it is kept: they stand in order, without names."""

from depthcut.records import Comparison, Degeneration, Estimate, Record, TextFacts, TextQuality


class Quality(Record, frozen=True, kw_only=True):
    """How well one model predicts a text."""

    loss: Estimate
    perplexity: Estimate
    bits_per_byte: Estimate
    texts: tuple[TextQuality, ...]
    """No default: what was kept before texts were judged apart cannot be read, and is made anew."""


class Judgement(Record, frozen=True, kw_only=True):
    """All models on one text."""

    text: TextFacts
    qualities: tuple[Quality, ...]
    comparisons: tuple[Comparison, ...]
    """For the second model and those after it."""


class Writing(Record, frozen=True, kw_only=True):
    """What all models wrote to the same prompts."""

    generations: tuple[tuple[str, ...], ...]
    degenerations: tuple[Degeneration | None, ...]

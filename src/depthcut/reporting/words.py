"""Numbers and judgements in words, the same on the page and in the terminal."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from depthcut.records import (
    Block,
    Estimate,
    Spread,
    Stability,
    Stopping,
    Sublayer,
    layers_in_words,
    sublayers_in_words,
)
from depthcut.settings import Tokens

ERRORS = 2.0
"""A difference counts from so many standard errors on; chance alone gets there once in twenty."""

CRITERIA = {
    "angular": "angular distance",
    "cosine": "cosine distance",
    "cosine-centred": "centred cosine distance",
    "euclidean": "relative Euclidean distance",
    "cka": "distance by CKA",
    "linear-map": "distance after the best linear map",
    "pruneme": "PruneMe's distance",
    "block-influence": "block influence",
    "relative-magnitude": "relative magnitude",
    "attention-influence": "influence of attention",
    "mlp-influence": "influence of the MLP",
    "weight-magnitude": "magnitude of weights",
    "taylor": "Taylor score",
    "loss-block": "loss increase",
    "kl-block": "KL divergence",
}
"""Criteria as people call them."""
TOKENS = {"last": "last token", "all": "all tokens"}


@dataclass(frozen=True)
class Verdict:
    """What a paired difference allows to say."""

    kind: Literal["worse", "better", "same", "open"]
    text: str


@dataclass(frozen=True)
class Ratio:
    """One speed as a multiple of another, over rounds measured in turn."""

    median: float
    low: float
    high: float

    @property
    def text(self) -> str:
        return f"{self.median:.2f}×"

    @property
    def spread(self) -> str:
        return f"{self.low:.2f}–{self.high:.2f}"


def amount(number: float) -> str:
    """134515008 as "134.5 M"."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{_three_digits(number / limit)} {unit}"
    return f"{number:,.0f}"


def size(number_bytes: float) -> str:
    """269000000 as "269 MB" (powers of 1000, as disks are sold)."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number_bytes >= limit:
            return f"{_three_digits(number_bytes / limit)} {unit}"
    return f"{number_bytes:,.0f} bytes"


def duration(seconds: float) -> str:
    """61.4 as "1 min 1 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def seconds(number: float) -> str:
    """A short time: "41 ms", "1.24 s"."""
    return f"{1000 * number:.3g} ms" if number < 0.9995 else f"{plain(number, 2)} s"


def change(before: float, after: float) -> str:
    """The relative change: "−18 %"."""
    percent = 100 * (after / before - 1) if before else 0.0
    return f"{signed(percent, 1 if abs(percent) < 10 else 0)} %"


def signed(number: float, decimals: int) -> str:
    """With a sign, a real minus, and no "−0"."""
    text = f"{abs(number):,.{decimals}f}"
    if float(text.replace(",", "")) == 0:
        return text
    return ("−" if number < 0 else "+") + text


def plain(number: float, decimals: int) -> str:
    """As many decimals, a real minus."""
    return signed(number, decimals).removeprefix("+")


def decimals_for(estimate: Estimate) -> int:
    """As many decimals as show two digits of the error, or three of a mean without one."""
    scale = estimate.stderr or abs(estimate.value) / 10
    if not scale or not math.isfinite(scale):
        return 2
    return min(6, max(0, 1 - math.floor(math.log10(scale))))


def estimate(value: Estimate, *, sign: bool = False, decimals: int | None = None) -> str:
    """A mean with its standard error, "28.7 ± 0.9"; without one where there is none."""
    places = decimals_for(value) if decimals is None else decimals
    mean = (signed if sign else plain)(value.value, places)
    return f"{mean} ± {value.stderr:,.{places}f}" if value.stderr else mean


def share(value: Estimate) -> str:
    """A share with its error in percent: "43 ± 6 %"."""
    shown = Estimate(value=100 * value.value, stderr=100 * value.stderr)
    return f"{estimate(shown, decimals=max(0, min(1, decimals_for(shown))))} %"


def estimates(values: Sequence[Estimate]) -> tuple[str, ...]:
    """Means side by side, with as many decimals as the least exact of them, where one is kept."""
    places = max(1, min(map(decimals_for, values), default=1))
    return tuple(estimate(each, decimals=places if each.value < 1000 else None) for each in values)


def criterion(name: str) -> str:
    """A criterion as people call it."""
    return CRITERIA.get(name, name)


def short_source(source: str) -> str:
    """A text's name, of paths the last two parts: "wikitext2/valid.txt"."""
    return re.sub(r"/?(?:[^\s/]+/)+(?=[^\s/]+/[^\s/]+)", "", source)


def shortened(text: str, most: int) -> str:
    """At most so many characters on one line: the beginning, and of the end twice as much, as a
    question often ends with what is asked.
    """
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    start = most // 3
    return f"{line[:start].rstrip()} … {line[start + 3 - most :].lstrip()}"


def sentence(text: str) -> str:
    """With a capital at its beginning; the rest as it is."""
    return text[:1].upper() + text[1:]


def at_tokens(tokens: Tokens) -> str:
    """Where a score was taken: "at the last token", "at all tokens"."""
    return "at the last token" if tokens == "last" else "at all tokens"


def span(blocks: Sequence[Block], parts: Sequence[Sublayer] = ()) -> str:
    """Blocks without their count, and parts of layers: "layers 12–18; MLP of layer 20"."""
    layers = layers_in_words(blocks).rpartition(" (")[0] if blocks or not parts else ""
    return "; ".join(filter(None, (layers, sublayers_in_words(parts))))


def numbers(blocks: Sequence[Block], parts: Sequence[Sublayer] = ()) -> str:
    """The same for a column of layers: "12–18", or with parts all in words."""
    return span(blocks, parts) if parts else span(blocks).partition(" ")[2]


def score(number: float) -> str:
    """A distance or layer score to three significant digits."""
    return _three_digits(number) if abs(number) >= 1 else f"{number:#.3g}"


def verdict(difference: Estimate) -> Verdict:
    """Whether two models, judged on the same tokens, differ. Positive is worse."""
    value, error = difference.value, difference.stderr
    side: Literal["worse", "better"] = "worse" if value > 0 else "better"
    shown = estimate(Estimate(value=abs(value), stderr=error))
    if error == 0:
        if value == 0:
            return Verdict("same", "the same on every token")
        return Verdict("open", f"{side} by {shown} nats per token, error unknown")
    if abs(value) < ERRORS * error:
        return Verdict("same", f"not distinguishable ({estimate(difference, sign=True)} nats)")
    return Verdict(side, f"significantly {side} by {shown} nats per token")


def perplexity_factor(difference: Estimate) -> str:
    """A difference of losses as a factor of the perplexity: "2.69×"."""
    return f"{math.exp(min(difference.value, 50.0)):.3g}×"


def ratio(measured: Spread | None) -> Ratio | None:
    """A ratio that was taken round by round, since rounds are measured in turn."""
    return Ratio(measured.median, measured.low, measured.high) if measured else None


def speed(measured: Spread | None) -> tuple[str, str]:
    """Median and middle half of the rounds in tokens per second: "39.1", "38.7–39.5"."""
    if measured is None:
        return "–", ""
    places = next((n for n, least in enumerate((100, 10, 1)) if measured.median >= least), 3)
    median, low, high = (
        plain(number, places) for number in (measured.median, measured.low, measured.high)
    )
    return median, f"{low}–{high}"


def _three_digits(number: float) -> str:
    digits = math.floor(math.log10(abs(number))) if number else 0
    return f"{number:,.{max(0, 2 - digits)}f}" if digits < 2 else f"{number:,.{int(digits < 3)}f}"


def stopping_in_words(stopping: Stopping) -> str:
    """Whether a survey settled what it was to settle, and what that took."""
    layers = layers_in_words(stopping.removed)
    by = CRITERIA.get(stopping.criterion, stopping.criterion)
    sure = f"with confidence {stopping.confidence:.4g}"
    if stopping.settled:
        return (
            f"Settled after {stopping.tokens:,} of {stopping.of_tokens:,} tokens, {sure}: "
            f"{layers}, by {by}."
        )
    return (
        f"Not settled by {stopping.tokens:,} tokens, {sure}: {layers}, by {by}, may not be the "
        "choice on others."
    )


def stability_in_words(found: Stability) -> str:
    """How often other sequences of the same text would have chosen the same layers."""
    parts = [
        f"on {found.share:.0%} of {found.resamples} resampled texts the same layers are chosen, on "
        f"average {found.overlap:.0%} of them"
    ]
    if found.rivals:
        rival = found.rivals[0]
        parts.append(f"most often instead {layers_in_words(rival.removed)}, {rival.share:.0%}")
    first, second = found.halves
    parts.append(
        f"both halves of the text choose {layers_in_words(first)}"
        if first == second
        else f"its halves choose {layers_in_words(first)}, and {layers_in_words(second)}"
    )
    parts += [
        f"{each.source} alone chooses {layers_in_words(each.removed)}" for each in found.texts
    ]
    return f"How sure: {'; '.join(parts)}."

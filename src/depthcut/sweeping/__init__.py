"""Ways of choosing layers, compared: one model and text in, every way judged on other texts out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from depthcut.records import Sweep
from depthcut.settings import LoadSettings, SweepSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def sweep(
    model: str | Path | PreTrainedModel,
    settings: SweepSettings | None = None,
    *,
    texts: Sequence[str] | None = None,
    judges: Mapping[str, Sequence[str]] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    load: LoadSettings | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    announce: Callable[[str], object] = lambda line: None,
) -> Sweep:
    """Have every way choose, and judge what they chose on texts that they did not see.

    The model is loaded once. Each distinct choice is measured once on each text, by running the
    model without the layers: nothing is sliced.

    Args:
        model: A source, or a causal language model in memory, which is left as it is.
        settings: The ways, the numbers of layers, the texts; see `SweepSettings`.
        texts: Documents in memory that the ways choose by, instead of `settings.text`.
        judges: Documents in memory that judge, by name, instead of `settings.judge`.
        tokenizer: For a model in memory.
        load: Device and dtype of a model that is loaded here.
        out: The folder in which all is kept; None: only the result is returned.
        overwrite: Replace what is in the folder and was made from other inputs.
        announce: Told one line when something begins or is skipped.

    Raises:
        DepthcutError: One of its kinds, see `depthcut.errors`.
    """
    from depthcut.sweeping.comparing import compare_ways

    return compare_ways(
        model,
        settings or SweepSettings(),
        load or LoadSettings(),
        texts=texts,
        judges=judges,
        tokenizer=tokenizer,
        folder=None if out is None else Path(out),
        overwrite=overwrite,
        announce=announce,
    )

"""Models that write: generate, generate_text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from depthcut.api.inputs import load_source, open_documents
from depthcut.records import OwnText
from depthcut.settings import LoadSettings, OwnTextSettings, TextSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def generate(
    model: str | Path,
    prompt: str,
    *,
    new_tokens: int = 128,
    load: LoadSettings | None = None,
) -> Iterator[str]:
    """The greedy continuation of a prompt, piece by piece, through the chat template if any."""
    from depthcut.evaluation.generation import generate as stream
    from depthcut.model.loading import load as load_model

    return stream(load_model(model, load or LoadSettings()), prompt, new_tokens=new_tokens)


def generate_text(
    model: str | Path | PreTrainedModel,
    out: Path,
    settings: OwnTextSettings | None = None,
    *,
    prompts: Sequence[str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    load: LoadSettings | None = None,
) -> OwnText:
    """Let a model write the text that it is calibrated on, into a JSONL file.

    What is written is kept beside it on the way (`<out>.journal`): the same call goes on where a
    killed one stopped, and comes to the same file.

    Args:
        model: A source, or a causal language model in memory, which is left as it is.
        out: The .jsonl file to be; it must not exist.
        settings: How much, and how it is sampled; see `OwnTextSettings`.
        prompts: Prompts in memory, instead of `settings.prompts`.
        tokenizer: For a model in memory.
        load: Device and dtype of a model that is loaded here.

    Raises:
        DepthcutError: One of its kinds, see `depthcut.errors`.
    """
    from depthcut.files import refuse_existing
    from depthcut.generating import write_own_text

    settings, load = settings or OwnTextSettings(), load or LoadSettings()
    refuse_existing(Path(out))
    asked = None
    if prompts is not None or settings.prompts is not None:
        source = TextSettings(
            text=settings.prompts or (),
            text_config=settings.text_config,
            split=settings.split,
            columns=settings.columns,
        )
        asked = open_documents(source, prompts)
    loaded = load_source(model, tokenizer, load)
    return write_own_text(loaded, asked, settings, load, Path(out))

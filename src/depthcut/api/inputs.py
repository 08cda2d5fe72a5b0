"""What the functions share: a model from a source or memory, its facts, a text and its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from depthcut.errors import SettingsError
from depthcut.launched import launched
from depthcut.records import ModelFacts
from depthcut.settings import LoadSettings, TextSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from depthcut.model.loading import LoadedModel
    from depthcut.text.documents import Text
    from depthcut.text.sequences import Sequences


def facts(model: str | Path, *, load: LoadSettings | None = None) -> ModelFacts:
    """What a checkpoint says of itself: layers, parameters, digest. Reads no weights."""
    from depthcut.checkpoint.folder import model_facts, open_checkpoint
    from depthcut.model.sources import locate

    return model_facts(open_checkpoint(locate(model, load or LoadSettings())), source=str(model))


def load_source(
    model: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    settings: LoadSettings,
    *,
    on_cpu: bool = False,
) -> LoadedModel:
    """A model, loaded from its source unless it is in memory; see `loading.load`."""
    from depthcut.model.loading import from_memory, load

    if isinstance(model, str | Path):
        return load(model, settings, on_cpu=on_cpu)
    return from_memory(model, tokenizer)


def open_documents(settings: TextSettings, documents: Sequence[str] | None) -> Text:
    """Opened before a model is loaded: a misspelt name costs no wait."""
    from depthcut.text.documents import open_text
    from depthcut.text.names import STANDARD_INPUT, named_texts

    names = () if documents is not None else named_texts(settings.text)
    if launched().count > 1 and any(each.name == STANDARD_INPUT for each in names):
        raise SettingsError(
            "several processes read the text each for itself: save standard input to a file"
        )
    return open_text(settings, documents)


def sequences_for(
    loaded: LoadedModel, text: Text, settings: TextSettings, *, answers_only: bool = False
) -> Sequences:
    """A text as a model's tokenizer has it.

    Raises:
        SettingsError: The model has no tokenizer.
        TextError: The text holds nothing usable.
    """
    from depthcut.text.sequences import read_sequences

    if loaded.tokenizer is None:
        raise SettingsError(
            "a model in memory needs its tokenizer: pass tokenizer="
            if loaded.folder is None
            else f"{loaded.folder} has no tokenizer: copy the model's tokenizer files into it"
        )
    return read_sequences(text, settings, loaded.tokenizer, answers_only=answers_only)

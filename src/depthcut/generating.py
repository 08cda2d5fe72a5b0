"""The stage: a model writes the text that it is calibrated on.

Self-calibration (Williams et al., arXiv:2410.17170): sampled from the model's own distribution,
from its beginning token on, so that no data set stands between the model and its measurement. Or
it answers prompts, as in healing on self-generated responses (arXiv:2602.01997).
"""

import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from depthcut.errors import SettingsError, TextError
from depthcut.files import new_file, refuse_existing
from depthcut.journals import Journal
from depthcut.model.continuations import (
    continued,
    encode,
    end_tokens,
    padded_on_the_left,
    sampling,
    tokenizer_of,
)
from depthcut.model.loading import LoadedModel
from depthcut.model.positions import learned_positions
from depthcut.progress import Advance, progress
from depthcut.records import Origin, OwnText, inputs_digest
from depthcut.settings import LoadSettings, OwnTextSettings
from depthcut.text.documents import Text
from depthcut.text.prompts import prompts_of
from depthcut.text.rows import Document

_log = logging.getLogger(__name__)
_BROKEN = "\ufffd"
"""What a character that is not whole is decoded to."""

_Document = dict[str, object]


class _Begun(NamedTuple):
    """A text to be continued."""

    inputs: Mapping[str, Tensor]
    finish: Callable[[list[int], bool], _Document | None]
    """The whole document, given the new tokens and whether they came to an end."""


class _Batch(msgspec.Struct, frozen=True):
    """A line of the journal: what one batch came to."""

    documents: list[_Document]
    tokens: int
    cut: int


def write_own_text(
    loaded: LoadedModel,
    prompts: Text | None,
    settings: OwnTextSettings,
    load: LoadSettings,
    out: Path,
) -> OwnText:
    """Let a model write text, and put it into a JSONL file that `open_text` reads.

    Each batch is sampled with a seed of its own and is appended to `<out>.journal`, synced; at the
    end the file is written from there, whole or not at all. So the same call goes on where a
    killed one stopped, and comes to the same file as one that was not.

    From nothing, a text begins with what the tokenizer puts before every text, else with the
    model's beginning token, else with its end token. A line then holds {"text": ...}, with special
    tokens as they were drawn, so that it is tokenised to what the model saw. Prompts go through
    the chat template, and a line holds {"messages": [...]}; without a template they are continued.

    Args:
        loaded: The model and its tokenizer.
        prompts: What it answers or continues; None: it begins from nothing.
        settings: How much, and how the tokens are drawn.
        load: As the model was loaded.
        out: The .jsonl file to be; it must not exist.

    Raises:
        SettingsError: Numbers that cannot be meant, no tokenizer, no token to begin with, or more
            tokens than the model has positions.
        TextError: No prompt fits, or prompts that are chats for a model without template.
        OutputError: `out` exists, a journal there is another text's, or the disk is full.
    """
    started = time.monotonic()
    _check(settings, out)
    digest = prompts.digest if prompts else ""
    inputs = inputs_digest("own text", settings, load, loaded.facts.digest, digest)
    begun = _from_prompts(loaded, prompts, settings) if prompts else _from_nothing(loaded, settings)
    with Journal(Path(f"{out}.journal"), _Batch, inputs=inputs) as journal:
        made = _fill(journal, loaded, begun, settings)
        if not made.documents:
            journal.delete()
            raise TextError(_nothing(loaded, made))
        with new_file(out) as file:
            file_digest = _write(journal, file)
        journal.delete()
    return OwnText(
        origin=Origin.since(started, inputs=inputs),
        model=loaded.facts,
        settings=settings,
        load=load,
        source=str(out),
        digest=file_digest,
        documents=made.documents,
        tokens=made.tokens,
        cut=made.cut,
    )


def _nothing(loaded: LoadedModel, made: "_Made") -> str:
    if made.batches:
        return f"{loaded.facts.source} wrote nothing but ends: choose another --seed or --prompts"
    return f"the prompts hold none that {loaded.facts.source} takes: give others"


def _check(settings: OwnTextSettings, out: Path) -> None:
    for field in ("tokens", "new_tokens", "batch_size", "first_tokens"):
        if (value := getattr(settings, field)) < 1:
            option = field.replace("_", "-")
            raise SettingsError(f"--{option} {value}: expected a number of at least 1")
    for field in ("temperature", "first_temperature"):
        value = getattr(settings, field)
        if value is not None and not 0 < value < float("inf"):
            option = field.replace("_", "-")
            raise SettingsError(f"--{option} {value}: expected a number above 0, such as 1")
    if not 0 < settings.top_p <= 1:
        raise SettingsError(f"--top-p {settings.top_p}: expected a number above 0, at most 1")
    if out.suffix.lower() != ".jsonl":
        raise SettingsError(f"--out {out}: name it .jsonl, so that it is read as what it is")
    refuse_existing(out)


def _from_nothing(loaded: LoadedModel, settings: OwnTextSettings) -> "Iterator[_Begun]":
    tokenizer = tokenizer_of(loaded)
    ids, shown = _beginning(loaded)
    _refuse_too_long(loaded, len(ids), settings)
    start = torch.tensor([ids], device=loaded.device)
    inputs = {"input_ids": start, "attention_mask": torch.ones_like(start)}

    def finish(new: list[int], ended: bool) -> _Document | None:
        text = _decoded(tokenizer, new, ended, special=True)
        return {"text": shown + text} if text.strip() else None

    while True:
        yield _Begun(inputs, finish)


def _beginning(loaded: LoadedModel) -> tuple[list[int], str]:
    """The tokens that a text begins behind, and what of them its tokenizer does not put there."""
    tokenizer, ends = tokenizer_of(loaded), end_tokens(loaded)
    put: list[int] = tokenizer("")["input_ids"]
    while put and put[-1] in ends:
        put.pop()
    if put:
        return put, ""
    for settings in (tokenizer, loaded.model.generation_config, loaded.model.config):
        first = getattr(settings, "bos_token_id", None)
        if first is not None:
            # An end token is between the texts of a packed sequence anyway.
            return [int(first)], "" if first in ends else tokenizer.decode([first])
    if not ends:
        raise SettingsError(
            f"{loaded.facts.source} has neither a beginning nor an end token, from which it could "
            "begin from nothing: give it --prompts"
        )
    _log.warning(
        "%s has no beginning token: each text begins behind its end token", loaded.facts.source
    )
    return [ends[0]], ""


def _from_prompts(
    loaded: LoadedModel, prompts: Text, settings: OwnTextSettings
) -> "Iterator[_Begun]":
    tokenizer = tokenizer_of(loaded)
    _refuse_too_long(loaded, 1, settings)
    limit = _positions(loaded)
    too_long = 0

    def answered(prompt: Document, new: list[int], ended: bool) -> _Document | None:
        text = _decoded(tokenizer, new, ended, special=False)
        if not text.strip():
            return None
        if not tokenizer.chat_template:
            return {"text": f"{prompt}{text}"}
        asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return {"messages": [*asked, {"role": "assistant", "content": text}]}

    for prompt in prompts_of(prompts):
        inputs = encode(loaded, prompt)
        if limit is not None and inputs["input_ids"].shape[1] + settings.new_tokens > limit:
            too_long += 1
            continue
        yield _Begun(inputs, partial(answered, prompt))
    if too_long:
        _log.warning(
            "%d prompts were left out: with %d new tokens they are longer than the %s positions "
            "of the model",
            too_long,
            settings.new_tokens,
            limit,
        )


def _positions(loaded: LoadedModel) -> int | None:
    """How many tokens the model takes, or was made for."""
    config = loaded.model.config.get_text_config()
    return learned_positions(loaded) or getattr(config, "max_position_embeddings", None)


def _refuse_too_long(loaded: LoadedModel, begun: int, settings: OwnTextSettings) -> None:
    limit = learned_positions(loaded)
    if limit is not None and begun + settings.new_tokens > limit:
        raise SettingsError(
            f"--new-tokens {settings.new_tokens}: {loaded.facts.source} has {limit} positions, and "
            f"{begun} before the new ones"
        )


def _decoded(tokenizer: Any, new: list[int], ended: bool, *, special: bool) -> str:
    text: str = tokenizer.decode(
        new, skip_special_tokens=not special, clean_up_tokenization_spaces=False
    )
    return text if ended else text.rstrip(_BROKEN)


@dataclass
class _Made:
    """What all batches so far came to."""

    batches: int = 0
    documents: int = 0
    tokens: int = 0
    cut: int = 0

    def add(self, batch: _Batch) -> None:
        self.batches += 1
        self.documents += len(batch.documents)
        self.tokens += batch.tokens
        self.cut += batch.cut


def _fill(
    journal: Journal[_Batch],
    loaded: LoadedModel,
    begun: "Iterator[_Begun]",
    settings: OwnTextSettings,
) -> _Made:
    made = _Made()
    for batch in journal:
        made.add(batch)
    for _ in islice(begun, made.batches * settings.batch_size):
        pass  # continued by an earlier call
    with progress("text", max(0, settings.tokens - made.tokens)) as advance:
        while made.tokens < settings.tokens:
            texts = list(islice(begun, settings.batch_size))
            if not texts:
                break
            batch = _written(loaded, texts, settings, made.batches, advance)
            journal.append(batch)
            made.add(batch)
    if 0 < made.tokens < settings.tokens:
        _log.warning(
            "the prompts ended: %d tokens of the %d asked for", made.tokens, settings.tokens
        )
    return made


def _written(
    loaded: LoadedModel,
    texts: list[_Begun],
    settings: OwnTextSettings,
    number: int,
    advance: Advance,
) -> _Batch:
    """One batch; what it comes to depends on its number, not on the batches before."""
    inputs = padded_on_the_left([text.inputs for text in texts])
    start, ends = inputs["input_ids"].shape[1], end_tokens(loaded)
    with _seeded(settings.seed, number):
        output = continued(
            loaded,
            inputs,
            sampling(temperature=settings.temperature, top_p=settings.top_p),
            new_tokens=settings.new_tokens,
            logits_processor=[_Cooling(settings, start)],
            stopping_criteria=[_Counting(ends, advance)],
        )
    documents, tokens, cut = [], 0, 0
    for text, row in zip(texts, output[:, start:].tolist(), strict=True):
        length = next((place for place, token in enumerate(row) if token in ends), None)
        new = row if length is None else row[:length]
        tokens += len(new) + (length is not None)
        if document := text.finish(new, length is not None):
            documents.append(document)
            cut += length is None
    return _Batch(documents, tokens, cut)


class _Cooling(LogitsProcessor):
    """The temperature of the first tokens, as a factor of the one that `generate` divides by."""

    def __init__(self, settings: OwnTextSettings, start: int) -> None:
        self.settings, self.start = settings, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        first, last = self.settings.first_temperature, self.settings.temperature
        done = (input_ids.shape[1] - self.start) / self.settings.first_tokens
        if first is None or done >= 1:
            return scores
        return scores * (last / (first + (last - first) * done))


class _Counting(StoppingCriteria):
    """Tells how many tokens were made at each step; it stops nothing."""

    def __init__(self, ends: tuple[int, ...], advance: Advance) -> None:
        self.ends, self.advance = ends, advance
        self.writing: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        last = input_ids[:, -1]
        if self.writing is None:
            self.writing = torch.ones_like(last, dtype=torch.bool)
        self.advance(int(self.writing.sum()))
        for end in self.ends:
            self.writing &= last != end
        return torch.zeros_like(self.writing)


@contextlib.contextmanager
def _seeded(seed: int, number: int) -> Iterator[None]:
    """A context in which torch's generators begin at a place of this seed and number."""
    place = hashlib.sha256(f"{seed} {number}".encode()).digest()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(int.from_bytes(place[:8], "big") >> 1)
        yield


def _write(journal: Journal[_Batch], file: Path) -> str:
    """All documents, one a line; the digest of the file."""
    digest = hashlib.sha256()
    with file.open("wb") as stream:
        for batch in journal:
            for document in batch.documents:
                line = msgspec.json.encode(document) + b"\n"
                digest.update(line)
                stream.write(line)
    return digest.hexdigest()

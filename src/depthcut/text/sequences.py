"""Documents to sequences of token ids: packed or padded, split in parts, cut to a budget."""

import logging
import random
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple, cast

import numpy as np
import torch
from msgspec import structs
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from depthcut.errors import SettingsError, TextError
from depthcut.records import TextFacts, TextPart, texts_in_words
from depthcut.settings import TextSettings
from depthcut.text.documents import Text, TextSource
from depthcut.text.formats import Continued, Document
from depthcut.text.mixing import interleaved

_BATCH_CHARACTERS = 1 << 18
_HELD_OUT_EVERY = 8
_MOST_TEXTS = 256
"""A record keeps the text of a sequence in one byte."""

_log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Sequences of equal length, shorter ones padded on the right."""

    ids: Tensor
    """(batch, length) int64."""
    mask: Tensor
    """(batch, length) bool; False: padding, which never counts."""


@dataclass(frozen=True)
class Sequences:
    """A text, or several, as a model reads it."""

    facts: TextFacts
    sequences: tuple[Tensor, ...]
    """1-D int64, 2 to context tokens each."""
    text_bytes: tuple[int, ...]
    """UTF-8 bytes that each sequence's tokens after the first stand for."""

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All sequences in order, so many at a time; the last batch may hold fewer."""
        for start in range(0, len(self.sequences), batch_size):
            yield padded(self.sequences[start : start + batch_size])

    def shuffled(self, seed: int) -> "Sequences":
        """In an order that says nothing of them: every beginning is a fair sample of all.

        Those of each of several texts change places among themselves, which keeps its share of
        every beginning.
        """
        generator, order = random.Random(seed), list(range(len(self.sequences)))
        of = self.facts.part_of_sequences
        for part in sorted(set(of)):
            places = [place for place, each in enumerate(of) if each == part]
            drawn = generator.sample(places, len(places))
            for place, taken in zip(places, drawn, strict=True):
                order[place] = taken
        return replace(
            self,
            sequences=tuple(self.sequences[each] for each in order),
            text_bytes=tuple(self.text_bytes[each] for each in order),
        )

    def first(self, count: int) -> "Sequences":
        """So many of them, and facts of those alone."""
        if count >= len(self.sequences):
            return self
        sequences, of = self.sequences[:count], self.facts.part_of_sequences[:count]
        parts = tuple(
            structs.replace(
                part,
                sequences=of.count(which),
                tokens=_count(seq for seq, own in zip(sequences, of, strict=True) if own == which),
            )
            for which, part in enumerate(self.facts.parts)
        )
        facts = structs.replace(
            self.facts,
            source=texts_in_words(parts) if parts else self.facts.source,
            sequences=count,
            tokens=_count(sequences),
            parts=parts,
            order=self.facts.order[:count],
        )
        return Sequences(facts, sequences, self.text_bytes[:count])


def _count(sequences: Iterable[Tensor]) -> int:
    return sum(len(sequence) for sequence in sequences)


def padded(sequences: Sequence[Tensor]) -> Batch:
    """Sequences as one batch, padded on the right to the longest of them."""
    length = max(len(sequence) for sequence in sequences)
    ids = torch.zeros(len(sequences), length, dtype=torch.int64)
    mask = torch.zeros(len(sequences), length, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = True
    return Batch(ids, mask)


def read_sequences(
    text: Text, settings: TextSettings, tokenizer: PreTrainedTokenizerBase
) -> Sequences:
    """As much of a text as the settings ask for, as token ids.

    Packing joins the documents with the end-of-sequence token between them and cuts full
    contexts; the last piece may be shorter and counts as it is. Padding takes each document
    as one sequence, cut at the context. Every eighth sequence is held out. Reading stops when
    `settings.tokens` are there.

    Several texts are each cut so by themselves, and their sequences brought into one order of
    which every beginning is a fair sample of the mixture. A text that ends early is not read
    again: the others fill up the tokens, and a warning tells the shares.

    Raises:
        SettingsError: A context or number of tokens that holds no prediction, or too many texts.
        SourceError: A source cannot be read.
        TextError: Nothing usable in one, or less than one context to pack.
    """
    if min(settings.context, settings.tokens) < 2:
        raise SettingsError("context and tokens must be at least 2: one to read, one to predict")
    if len(text.sources) > _MOST_TEXTS:
        raise SettingsError(
            f"{len(text.sources)} texts are more than {_MOST_TEXTS}: put them into a folder"
        )
    ended: set[int] = set()
    streams = [
        _of_source(source, settings, tokenizer, partial(ended.add, which))
        for which, source in enumerate(text.sources)
    ]
    sequences: list[_Tokens] = []
    order = bytearray()
    left = settings.tokens
    for which, sequence in interleaved(streams, text.shares, size=_length):
        sequences.append(sequence.first(left))
        order.append(which)
        left -= len(sequences[-1].ids)
        if left < 2:
            break
    facts = _facts(text, [len(each.ids) for each in sequences], bytes(order))
    _warn_of_shares(facts, ended, settings)
    ids = tuple(torch.from_numpy(sequence.ids) for sequence in sequences)
    return Sequences(facts, ids, tuple(_text_bytes(seq, tokenizer) for seq in sequences))


def _of_source(
    source: TextSource,
    settings: TextSettings,
    tokenizer: PreTrainedTokenizerBase,
    tell_end: Callable[[], object],
) -> "Iterator[_Tokens]":
    """A source's sequences, those of the part that is asked for."""
    encoded = _encode(source.documents(), tokenizer)
    cut = _packed if settings.packing == "pack" else _one_each
    index, given = -1, 0
    for index, sequence in enumerate(cut(encoded, settings, tokenizer, source.name)):
        held_out = index % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
        if settings.part == "all" or held_out == (settings.part == "held-out"):
            given += 1
            yield sequence
    if not given:
        raise TextError(_nothing(source.name, settings, index + 1))
    tell_end()


def _facts(text: Text, lengths: Sequence[int], order: bytes) -> TextFacts:
    parts = []
    for which, (source, share) in enumerate(zip(text.sources, text.shares, strict=True)):
        own = [length for length, of in zip(lengths, order, strict=True) if of == which]
        parts.append(
            TextPart(
                source=source.name,
                digest=source.digest,
                share=share,
                sequences=len(own),
                tokens=sum(own),
            )
        )
    return TextFacts(
        source=texts_in_words(parts),
        digest=text.digest,
        sequences=len(lengths),
        tokens=sum(lengths),
        parts=tuple(parts),
        order=order if len(parts) > 1 else b"",
    )


def _warn_of_shares(facts: TextFacts, ended: Container[int], settings: TextSettings) -> None:
    for which, part in enumerate(facts.parts):
        if not part.sequences:
            _log.warning(
                "%d tokens hold no sequence of %s, %.1f%% of the text: give more --tokens, or a "
                "shorter --context",
                *(settings.tokens, part.source, 100 * part.share),
            )
        elif which in ended and part.tokens + settings.context < part.share * facts.tokens:
            _log.warning(
                "the text %s ended after %d tokens: it is %.1f%% of what was read, not %.1f%%; "
                "give more of it, or read at most --tokens %d",
                *(part.source, part.tokens, 100 * part.tokens / facts.tokens, 100 * part.share),
                round(part.tokens / part.share),
            )


class _Tokens(NamedTuple):
    ids: "np.ndarray[tuple[int], np.dtype[np.int64]]"
    text_bytes: "np.ndarray[tuple[int], np.dtype[np.int64]] | None"
    """UTF-8 bytes of each token; None: the tokenizer cannot say."""
    continued: bool = False
    chat: bool = False

    def first(self, count: int) -> "_Tokens":
        return self.part(0, count)

    def part(self, start: int, stop: int) -> "_Tokens":
        found = self.text_bytes
        return _Tokens(
            self.ids[start:stop].copy(), None if found is None else found[start:stop].copy()
        )


def _length(tokens: _Tokens) -> int:
    return len(tokens.ids)


def _encode(documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase) -> Iterator[_Tokens]:
    """Each document's tokens, tokenised many documents at a time; empty ones are left out."""
    waiting: list[tuple[str, bool, bool]] = []
    characters = 0
    for document in documents:
        chat = isinstance(document, list)
        text = _rendered(document, tokenizer) if isinstance(document, list) else document
        if not text.strip() and not isinstance(document, Continued):
            continue
        waiting.append((text, isinstance(document, Continued), chat))
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield from _tokenised(waiting, tokenizer)
            waiting, characters = [], 0
    if waiting:
        yield from _tokenised(waiting, tokenizer)


def _tokenised(
    pieces: Sequence[tuple[str, bool, bool]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[_Tokens]:
    begun = [text for text, continued, chat in pieces if not (continued or chat)]
    others = [text for text, continued, chat in pieces if continued or chat]
    fresh = iter(_call(begun, tokenizer, special=True))
    rest = iter(_call(others, tokenizer, special=False))
    for _, continued, chat in pieces:
        tokens = next(rest) if continued or chat else next(fresh)
        yield tokens._replace(continued=continued, chat=chat)


def _call(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, *, special: bool
) -> Iterator[_Tokens]:
    if not texts:
        return
    fast = tokenizer.is_fast
    found = tokenizer(
        texts,
        add_special_tokens=special,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=fast,
        verbose=False,
    )
    for number, text in enumerate(texts):
        ids = np.asarray(found["input_ids"][number], dtype=np.int64)
        offsets = found["offset_mapping"][number] if fast else None
        yield _Tokens(ids, None if offsets is None else _token_bytes(text, offsets))


def _token_bytes(
    text: str, offsets: Sequence[tuple[int, int]]
) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Bytes of each token, so that they add up to the text's even where tokens share a character.

    A character split over several tokens counts at the first of them.
    """
    ends = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)[:, 1]
    reached = np.maximum.accumulate(ends) if len(ends) else ends
    if not text.isascii():
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        sizes = 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)
        reached = np.concatenate([[0], np.cumsum(sizes)])[reached]
    return np.diff(reached, prepend=0)


def _rendered(messages: list[dict[str, object]], tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.chat_template:
        raise TextError(
            "the text holds chats, and the model has no chat template: choose a plain text "
            "column with --columns, or a chat model"
        )
    try:
        text = tokenizer.apply_chat_template(cast(list[dict[str, str]], messages), tokenize=False)
    except Exception as error:  # templates raise whatever their author chose
        raise TextError(f"the model's chat template refuses a chat of the text: {error}") from error
    return cast(str, text)


def _packed(
    encoded: Iterator[_Tokens],
    settings: TextSettings,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
) -> Iterator[_Tokens]:
    eos = tokenizer.eos_token_id
    context = settings.context
    separator = _Tokens(np.asarray([eos], dtype=np.int64), np.zeros(1, dtype=np.int64))
    joined: _Tokens | None = None
    ended = True  # nothing to separate yet
    full = 0
    for tokens in encoded:
        parts = [joined] if joined is not None else []
        between = eos is not None and not (tokens.continued or ended)
        parts += [separator, tokens] if between else [tokens]
        joined = _concatenated(parts)
        ended = tokens.chat or (len(tokens.ids) > 0 and int(tokens.ids[-1]) == eos)
        cuts = range(0, len(joined.ids) + 1, context)
        for start, stop in pairwise(cuts):
            full += 1
            yield joined.part(start, stop)
        joined = joined.part(cuts[-1], len(joined.ids))
    count = 0 if joined is None else len(joined.ids)
    if joined is not None and not full and count < min(context, settings.tokens):
        raise TextError(
            f"the text {name} has {count:,} tokens, less than one context of {context:,}: "
            "lower --context, give more text, or use --packing pad"
        )
    if joined is not None and count >= 2:
        yield joined


def _one_each(
    encoded: Iterator[_Tokens],
    settings: TextSettings,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
) -> Iterator[_Tokens]:
    document: _Tokens | None = None
    for tokens in encoded:
        if tokens.continued and document is not None:
            if len(document.ids) < settings.context:
                document = _concatenated([document, tokens]).first(settings.context)
            continue
        if document is not None and len(document.ids) >= 2:
            yield document
        document = tokens.first(settings.context)
    if document is not None and len(document.ids) >= 2:
        yield document


def _concatenated(parts: Sequence[_Tokens]) -> _Tokens:
    sizes = [part.text_bytes for part in parts]
    known = [size for size in sizes if size is not None]
    return _Tokens(
        np.concatenate([part.ids for part in parts]),
        np.concatenate(known) if len(known) == len(sizes) else None,
    )


def _text_bytes(tokens: _Tokens, tokenizer: PreTrainedTokenizerBase) -> int:
    if tokens.text_bytes is not None:
        return int(tokens.text_bytes[1:].sum())
    text = tokenizer.decode(tokens.ids[1:].tolist(), skip_special_tokens=True)
    return len(cast(str, text).encode("utf-8", "surrogatepass"))


def _nothing(name: str, settings: TextSettings, sequences: int) -> str:
    if not sequences:
        return f"the text {name} is empty: give a text with at least two tokens"
    return (
        f"the text {name} gives {sequences} sequences of {settings.context} tokens, and --part "
        f"{settings.part} takes every eighth: lower --context or give more text"
    )

"""Documents to sequences of token ids: packed or padded, split in parts, cut to a budget."""

import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from depthcut.text.mixing import interleaved
from depthcut.text.tokens import Tokens, all_or_answers, concatenated, encoded

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
    answers: tuple[Tensor, ...] = ()
    """Which tokens of each sequence are to be learned where only the answers of chats are, 1-D
    bool: an assistant's, and all of plain text. None at all: every token is."""

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
            answers=tuple(self.answers[each] for each in order) if self.answers else (),
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
        return Sequences(facts, sequences, self.text_bytes[:count], self.answers[:count])


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
    text: Text,
    settings: TextSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    answers_only: bool = False,
) -> Sequences:
    """As much of a text as the settings ask for, as token ids.

    Packing joins the documents with the end-of-sequence token between them and cuts full
    contexts; the last piece may be shorter and counts as it is. Padding takes each document
    as one sequence, cut at the context. Every eighth sequence is held out. Reading stops when
    `settings.tokens` are there.

    Several texts are each cut so by themselves, and their sequences brought into one order of
    which every beginning is a fair sample of the mixture. A text that ends early is not read
    again: the others fill up the tokens, and a warning tells the shares.

    Args:
        answers_only: Tell which tokens are an assistant's. Padded chats whose answers lie behind
            the context are left out, and a warning counts them; packed ones stay.

    Raises:
        SettingsError: A context or number of tokens that holds no prediction, or too many texts.
        SourceError: A source cannot be read.
        TextError: Nothing usable in one, less than one context to pack, or answers asked for
            that are not there or cannot be told from the rest.
    """
    if min(settings.context, settings.tokens) < 2:
        raise SettingsError("context and tokens must be at least 2: one to read, one to predict")
    if len(text.sources) > _MOST_TEXTS:
        raise SettingsError(
            f"{len(text.sources)} texts are more than {_MOST_TEXTS}: put them into a folder"
        )
    readings = [_Reading() for _ in text.sources]
    streams = [
        _of_source(source, settings, tokenizer, answers_only, reading)
        for source, reading in zip(text.sources, readings, strict=True)
    ]
    sequences: list[Tokens] = []
    order = bytearray()
    left = settings.tokens
    for which, sequence in interleaved(streams, text.shares, size=_length):
        sequences.append(sequence.first(left))
        order.append(which)
        left -= len(sequences[-1].ids)
        if left < 2:
            break
    facts = _facts(text, [len(each.ids) for each in sequences], bytes(order))
    _warn_of_shares(facts, readings, settings)
    return Sequences(
        facts,
        sequences=tuple(torch.from_numpy(each.ids) for each in sequences),
        text_bytes=tuple(_text_bytes(each, tokenizer) for each in sequences),
        answers=_answers(sequences, facts, readings, settings) if answers_only else (),
    )


@dataclass
class _Reading:
    """How far one source has been read."""

    ended: bool = False
    unanswered: int = 0
    """Padded chats that were left out, as no answer lies within the context."""


def _of_source(
    source: TextSource,
    settings: TextSettings,
    tokenizer: PreTrainedTokenizerBase,
    answers_only: bool,
    reading: _Reading,
) -> Iterator[Tokens]:
    """A source's sequences, those of the part that is asked for."""
    documents = encoded(source.documents(), tokenizer, answers=answers_only)
    cut = _packed if settings.packing == "pack" else _one_each
    index, given = -1, 0
    for index, sequence in enumerate(cut(documents, settings, tokenizer, source.name)):
        held_out = index % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
        if settings.part != "all" and held_out != (settings.part == "held-out"):
            continue
        if settings.packing == "pad" and sequence.unanswered:
            reading.unanswered += 1
            continue
        given += 1
        yield sequence
    if not given:
        raise TextError(_nothing(source.name, settings, index + 1, reading.unanswered))
    reading.ended = True


def _answers(
    sequences: Sequence[Tokens],
    facts: TextFacts,
    readings: Sequence[_Reading],
    settings: TextSettings,
) -> tuple[Tensor, ...]:
    for part, reading in zip(facts.parts, readings, strict=True):
        if reading.unanswered:
            _log.warning(
                "%d chats of %s were left out: no answer within their first %d tokens; raise "
                "--context, or use --packing pack",
                *(reading.unanswered, part.source, settings.context),
            )
    if all(each.answers is None for each in sequences):
        _log.warning(
            "--answers-only changes nothing: no chat in what was read of %s, or the model has no "
            "chat template",
            facts.source,
        )
        return ()
    if all(each.unanswered for each in sequences):
        raise TextError(
            f"no answer of an assistant in the {facts.tokens:,} tokens that were read of "
            f"{facts.source}: raise --tokens or --context, or train on all of it, without "
            "--answers-only"
        )
    return tuple(torch.from_numpy(all_or_answers(each)) for each in sequences)


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


def _warn_of_shares(facts: TextFacts, readings: Sequence[_Reading], settings: TextSettings) -> None:
    for part, reading in zip(facts.parts, readings, strict=True):
        if not part.sequences:
            _log.warning(
                "%d tokens hold no sequence of %s, %.1f%% of the text: give more --tokens, or a "
                "shorter --context",
                *(settings.tokens, part.source, 100 * part.share),
            )
        elif reading.ended and part.tokens + settings.context < part.share * facts.tokens:
            _log.warning(
                "the text %s ended after %d tokens: it is %.1f%% of what was read, not %.1f%%; "
                "give more of it, or read at most --tokens %d",
                *(part.source, part.tokens, 100 * part.tokens / facts.tokens, 100 * part.share),
                round(part.tokens / part.share),
            )


def _length(tokens: Tokens) -> int:
    return len(tokens.ids)


def _packed(
    documents: Iterator[Tokens],
    settings: TextSettings,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
) -> Iterator[Tokens]:
    eos = tokenizer.eos_token_id
    context = settings.context
    separator = Tokens(np.asarray([eos], dtype=np.int64), np.zeros(1, dtype=np.int64))
    joined: Tokens | None = None
    ended = True  # nothing to separate yet
    full = 0
    for tokens in documents:
        parts = [joined] if joined is not None else []
        between = eos is not None and not (tokens.continued or ended)
        parts += [_before(tokens, separator), tokens] if between else [tokens]
        joined = concatenated(parts)
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


def _before(tokens: Tokens, separator: Tokens) -> Tokens:
    """An end token is a text's own, but not learned where answers are and a chat follows it."""
    learned = None if tokens.answers is None else np.zeros(1, dtype=np.bool_)
    return separator._replace(answers=learned)


def _one_each(
    documents: Iterator[Tokens],
    settings: TextSettings,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
) -> Iterator[Tokens]:
    document: Tokens | None = None
    for tokens in documents:
        if tokens.continued and document is not None:
            if len(document.ids) < settings.context:
                document = concatenated([document, tokens]).first(settings.context)
            continue
        if document is not None and len(document.ids) >= 2:
            yield document
        document = tokens.first(settings.context)
    if document is not None and len(document.ids) >= 2:
        yield document


def _text_bytes(tokens: Tokens, tokenizer: PreTrainedTokenizerBase) -> int:
    if tokens.text_bytes is not None:
        return int(tokens.text_bytes[1:].sum())
    text = tokenizer.decode(tokens.ids[1:].tolist(), skip_special_tokens=True)
    return len(cast(str, text).encode("utf-8", "surrogatepass"))


def _nothing(name: str, settings: TextSettings, sequences: int, unanswered: int) -> str:
    if not sequences:
        return f"the text {name} is empty: give a text with at least two tokens"
    if unanswered:
        return (
            f"none of the {unanswered} chats of {name} has an answer within its first "
            f"{settings.context} tokens: raise --context, use --packing pack, or train on all of "
            "it, without --answers-only"
        )
    return (
        f"the text {name} gives {sequences} sequences of {settings.context} tokens, and --part "
        f"{settings.part} takes every eighth: lower --context or give more text"
    )

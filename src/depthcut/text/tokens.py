"""Documents to token ids: many at a time, each token with its bytes and whether it is learned."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from depthcut.text.chats import RenderedChat, Span, rendered
from depthcut.text.formats import Continued
from depthcut.text.rows import Document, Exchange

_BATCH_CHARACTERS = 1 << 18

_Integers = np.ndarray[tuple[int], np.dtype[np.int64]]
_Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]


class Tokens(NamedTuple):
    """A document, or a part or several of them."""

    ids: _Integers
    text_bytes: _Integers | None
    """UTF-8 bytes of each token; None: the tokenizer cannot say."""
    answers: _Flags | None = None
    """Which tokens an assistant says; None: no chat, all of it is to be learned."""
    continued: bool = False
    chat: bool = False

    def first(self, count: int) -> "Tokens":
        """So many of them."""
        return self.part(0, count)

    def part(self, start: int, stop: int) -> "Tokens":
        """A copy, so that the whole need not be kept."""
        found, said = self.text_bytes, self.answers
        return Tokens(
            self.ids[start:stop].copy(),
            None if found is None else found[start:stop].copy(),
            None if said is None else said[start:stop].copy(),
        )

    @property
    def unanswered(self) -> bool:
        """No token to be predicted is an assistant's."""
        return self.answers is not None and not self.answers[1:].any()


def concatenated(parts: Sequence[Tokens]) -> Tokens:
    """One behind the other."""
    sizes = [part.text_bytes for part in parts if part.text_bytes is not None]
    said = None
    if any(part.answers is not None for part in parts):
        said = np.concatenate([all_or_answers(part) for part in parts])
    return Tokens(
        np.concatenate([part.ids for part in parts]),
        np.concatenate(sizes) if len(sizes) == len(parts) else None,
        said,
    )


def all_or_answers(tokens: Tokens) -> _Flags:
    """Which tokens are to be learned, said in full."""
    return np.ones(len(tokens.ids), dtype=np.bool_) if tokens.answers is None else tokens.answers


class _Piece(NamedTuple):
    text: str
    chat: RenderedChat | None
    continued: bool


def encoded(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, *, answers: bool = False
) -> Iterator[Tokens]:
    """Each document's tokens, tokenised many documents at a time; empty ones are left out.

    Args:
        answers: Tell the assistant's tokens of chats.

    Raises:
        TextError: Chats that the model's template refuses, or answers that cannot be found.
    """
    waiting: list[_Piece] = []
    characters = 0
    for document in documents:
        piece = _piece(document, tokenizer, answers)
        if not piece.text.strip() and not piece.continued:
            continue
        waiting.append(piece)
        characters += len(piece.text)
        if characters >= _BATCH_CHARACTERS:
            yield from _tokenised(waiting, tokenizer, answers)
            waiting, characters = [], 0
    if waiting:
        yield from _tokenised(waiting, tokenizer, answers)


def _piece(document: Document, tokenizer: PreTrainedTokenizerBase, answers: bool) -> _Piece:
    if isinstance(document, str):
        return _Piece(document, None, isinstance(document, Continued))
    if isinstance(document, Exchange) and not tokenizer.chat_template:
        return _Piece(document.plain, None, continued=False)
    chat = rendered(document, tokenizer, answers=answers)
    return _Piece(chat.text, chat, continued=False)


def _tokenised(
    pieces: Sequence[_Piece], tokenizer: PreTrainedTokenizerBase, answers: bool
) -> Iterator[Tokens]:
    """The template has said already what begins a chat, and so has what a text continues."""
    whole = [piece for piece in pieces if not (piece.continued or piece.chat)]
    others = [piece for piece in pieces if piece.continued or piece.chat]
    fresh = iter(_call(whole, tokenizer, special=True, answers=answers))
    rest = iter(_call(others, tokenizer, special=False, answers=answers))
    for piece in pieces:
        tokens = next(rest if piece.continued or piece.chat else fresh)
        yield tokens._replace(continued=piece.continued, chat=piece.chat is not None)


def _call(
    pieces: Sequence[_Piece], tokenizer: PreTrainedTokenizerBase, *, special: bool, answers: bool
) -> Iterator[Tokens]:
    if not pieces:
        return
    fast = tokenizer.is_fast
    found = tokenizer(
        [piece.text for piece in pieces],
        add_special_tokens=special,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=fast,
        verbose=False,
    )
    for number, piece in enumerate(pieces):
        ids = np.asarray(found["input_ids"][number], dtype=np.int64)
        if not fast:
            yield Tokens(ids, None)
            continue
        offsets = np.asarray(found["offset_mapping"][number], dtype=np.int64).reshape(-1, 2)
        said = _within(offsets, piece.chat.answers) if answers and piece.chat else None
        yield Tokens(ids, _token_bytes(piece.text, offsets[:, 1]), said)


def _within(
    offsets: "np.ndarray[tuple[int, int], np.dtype[np.int64]]", spans: Sequence[Span]
) -> _Flags:
    """Which tokens hold a character of one of the spans.

    Where a tokenizer leaves white space out of its offsets, a token of nothing else has an end
    but no length: it holds the character before its end at least.
    """
    ends = offsets[:, 1]
    begins = np.minimum(offsets[:, 0], ends - 1)
    found = np.zeros(len(ends), dtype=np.bool_)
    for start, stop in spans:
        found |= (begins < stop) & (ends > start)
    return found


def _token_bytes(text: str, ends: _Integers) -> _Integers:
    """Bytes of each token, so that they add up to the text's even where tokens share a character.

    A character split over several tokens counts at the first of them.
    """
    reached = np.maximum.accumulate(ends) if len(ends) else ends
    if not text.isascii():
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        sizes = 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)
        reached = np.concatenate([[0], np.cumsum(sizes)])[reached]
    return np.diff(reached, prepend=0)

"""A row of a table as a document: text, a chat, or a question and its answer."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from depthcut.errors import TextError, nearest

Message = dict[str, object]
"""One turn of a chat: role, content, and whatever else the model's template reads."""

Document = str | list[Message]


class Exchange(list[Message]):
    """A question and its answer: a chat, or plain text for a model without a chat template."""

    def __init__(self, question: str, answer: str) -> None:
        """An empty answer is none: the chat then ends with the question."""
        super().__init__([{"role": "user", "content": question}])
        if answer:
            self.append({"role": "assistant", "content": answer})
        self.question = question
        self.plain = _joined((question, answer))


class Columns(NamedTuple):
    """What of a row is read."""

    names: tuple[str, ...]
    answer: str | None = None
    """The one of them that answers the others; None: they are one text."""


_TEXT_COLUMNS = ("text", "content", "messages")
_EXCHANGES = (
    ("instruction", "input", "output"),
    ("instruction", "context", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
)
"""The question, what it is about, and the answer: as Alpaca, Dolly and others name them."""


def choose_columns(known: Iterable[str], columns: Iterable[str], place: str) -> Columns:
    """The columns that hold the text: those asked for, else the first usual ones there are.

    Raises:
        TextError: A column that is not there, or none was asked for and none is usual.
    """
    names, asked = list(known), tuple(columns)
    for column in asked:
        if column not in names:
            raise TextError(
                f"{place}: no column {column!r}{nearest(column, names)}; it has {', '.join(names)}"
            )
    if asked:
        return Columns(asked)
    for column in _TEXT_COLUMNS:
        if column in names:
            return Columns((column,))
    for question, *about, answer in _EXCHANGES:
        if question in names and answer in names:
            return Columns((question, *(each for each in about if each in names), answer), answer)
    raise TextError(
        f"{place}: no column text, content or messages, nor instruction and output, or prompt "
        f"and completion; choose with --columns from {', '.join(names) or 'none'}"
    )


def document_of(row: Mapping[str, object], columns: Columns, place: str) -> Document:
    """A row's chat messages, its question and answer, or its columns joined by a blank line.

    Raises:
        TextError: A value that is neither text nor a list of messages.
    """
    names, answer = columns
    if len(names) == 1 and isinstance(value := row.get(names[0]), list):
        return _chat(value, f"{place}, column {names[0]!r}")
    texts = {name: _text(row.get(name), f"{place}, column {name!r}") for name in names}
    if answer is None:
        return _joined(texts.values())
    answered = texts.pop(answer)
    question = _joined(texts.values())
    return Exchange(question, answered) if question or answered else ""


def _joined(texts: Iterable[str]) -> str:
    return "\n\n".join(filter(None, texts))


def _text(value: object, place: str) -> str:
    if not isinstance(value, str | None):
        raise TextError(f"{place}: expected text, found {type(value).__name__}")
    return value or ""


def _chat(messages: list[object], place: str) -> Document:
    chat: list[Message] = []
    for message in messages:
        if not (isinstance(message, dict) and {"role", "content"} <= message.keys()):
            raise TextError(f"{place}: expected messages with role and content")
        chat.append(message)
    return chat

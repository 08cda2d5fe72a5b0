"""A text as prompts for a model: its lines, its documents, or its chats up to the last answer."""

from collections.abc import Iterator
from functools import partial

from depthcut.text.documents import Text, TextSource
from depthcut.text.mixing import interleaved
from depthcut.text.rows import Document, Exchange


def prompts_of(text: Text) -> Iterator[Document]:
    """The prompts of a text in order; of several texts, in proportion to their weights.

    Of a plain file each line is a prompt, of other sources each document. A chat is a prompt up to
    where its last answer begins, of a question with its answer the question. Empty ones are left
    out.

    Raises:
        SourceError: A source cannot be read.
        TextError: It is not what it should be.
    """
    streams = [_of_source(source) for source in text.sources]
    for _, prompt in interleaved(streams, text.shares, size=lambda _: 1):
        yield prompt


def _of_source(source: TextSource) -> Iterator[Document]:
    documents = partial(_lines, source) if source.plain else source.documents
    for document in documents():
        if isinstance(document, Exchange):
            prompt: Document = document.question
        elif isinstance(document, str):
            prompt = document.strip()
        else:
            prompt = list(document)
            while prompt and prompt[-1]["role"] == "assistant":
                prompt.pop()
        if prompt:
            yield prompt


def _lines(source: TextSource) -> Iterator[str]:
    """The lines of a plain file, whose one document may come in pieces."""
    begun = ""
    for piece in source.documents():
        *lines, begun = (begun + str(piece)).split("\n")
        yield from lines
    yield begun

"""The kinds of text file: each a function from a stream of bytes to documents, streaming."""

import codecs
import contextlib
import csv
import gzip
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

from depthcut.errors import SourceError, TextError
from depthcut.text.rows import Columns, Document, choose_columns, document_of


class Continued(str):
    """More of the document before it: nothing goes between them."""

    __slots__ = ()


_BLOCK_BYTES = 1 << 20


def read_plain(stream: BinaryIO, name: str, columns: Sequence[str]) -> Iterator[Document]:
    """One document for the whole file, in pieces that end at a line where there is one."""
    if columns:
        raise TextError(
            f"{name} is plain text and has no columns: leave out --columns, or name those of "
            "another text behind it: chat.jsonl[question,answer]"
        )
    kind: Callable[[str], str] = str
    rest = ""
    for text in _decoded(stream, name):
        rest += text
        end = _safe_end(rest)
        if end and len(rest) >= _BLOCK_BYTES:
            yield kind(rest[:end])
            kind, rest = Continued, rest[end:]
    if rest:
        yield kind(rest)


def _safe_end(text: str) -> int:
    """Behind the last single line break: tokenizers rarely join text over one; 0: none."""
    end = len(text)
    while end := text.rfind("\n", 0, end) + 1:
        if end < len(text) and not text[end].isspace() and not text[end - 2 : end - 1].isspace():
            return end
        end -= 1
    return 0


def read_jsonl(stream: BinaryIO, name: str, columns: Sequence[str]) -> Iterator[Document]:
    """One document for each line, a JSON object."""
    for number, line in enumerate(_lines(stream, name), start=1):
        if not line.strip():
            continue
        place = f"{name}, line {number}"
        try:
            row = msgspec.json.decode(line)
        except msgspec.DecodeError as error:
            raise TextError(f"{place}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise TextError(f'{place}: expected a JSON object such as {{"text": "…"}}')
        yield document_of(row, choose_columns(row, columns, place), place)


def read_csv(stream: BinaryIO, name: str, columns: Sequence[str]) -> Iterator[Document]:
    """One document for each row; the first row names the columns."""
    reader = csv.reader(_lines(stream, name))
    csv.field_size_limit(1 << 31)
    try:
        header = next(reader, [])
        chosen = choose_columns(header, columns, name) if header else Columns(())
        for values in reader:
            if values:
                place = f"{name}, line {reader.line_num}"
                row = dict(zip(header, values, strict=False))
                yield document_of(row, chosen, place)
    except csv.Error as error:
        raise TextError(f"{name}, line {reader.line_num}: not CSV: {error}") from error


def read_parquet(stream: BinaryIO, name: str, columns: Sequence[str]) -> Iterator[Document]:
    """One document for each row; only the chosen columns are read."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(stream)
        chosen = choose_columns(file.schema_arrow.names, columns, name)
        number = 0
        for batch in file.iter_batches(batch_size=256, columns=list(chosen.names)):
            for row in batch.to_pylist():
                number += 1
                yield document_of(row, chosen, f"{name}, row {number}")
    except pyarrow.ArrowException as error:
        raise TextError(f"{name}: not a Parquet file: {error}") from error


FORMATS: dict[str, Callable[[BinaryIO, str, Sequence[str]], Iterator[Document]]] = {
    ".txt": read_plain,
    ".md": read_plain,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".parquet": read_parquet,
}
"""By suffix; each also with .gz or .zst behind it."""


def format_of(path: Path) -> str | None:
    """The suffix in FORMATS of a file, compression aside; None: not a text file we know."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in (".gz", ".zst"):
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


def read_file(path: Path, columns: Sequence[str]) -> Iterator[Document]:
    """The documents of a file whose suffix is in FORMATS.

    Raises:
        SourceError: The file cannot be read.
        TextError: It is not what its suffix says, not UTF-8, or lacks a column.
    """
    kind = format_of(path)
    if kind is None:
        raise SourceError(f"{path}: unknown kind of text file, expected {', '.join(FORMATS)}")
    try:
        with contextlib.ExitStack() as stack:
            stream = _decompressed(path, stack)
            if kind == ".parquet" and format_of(path) != path.suffix.lower():
                stream = stack.enter_context(spooled(stream))
            yield from FORMATS[kind](stream, str(path), columns)
    except OSError as error:
        if isinstance(error, SourceError):
            raise
        if error.errno is None:  # raised by a decompressor, not by the system
            raise TextError(f"{path}: broken compression: {error}") from error
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    except (EOFError, zlib.error) as error:
        raise TextError(f"{path}: broken compression: {error}") from error


def _decoded(stream: BinaryIO, name: str) -> Iterator[str]:
    """The stream as text, block by block, without a byte order mark."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    position = 0
    begun = False
    while True:
        block = stream.read(_BLOCK_BYTES)
        waiting = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise TextError(
                f"{name}: not UTF-8 at byte {position - waiting + error.start}: {error.reason}; "
                "convert it first, for example with iconv"
            ) from error
        position += len(block)
        if text:
            yield text if begun else text.removeprefix("\ufeff")
            begun = True
        if not block:
            return


def _lines(stream: BinaryIO, name: str) -> Iterator[str]:
    """The lines of the stream with their ends, split at line breaks only (as JSON and CSV are)."""
    rest: list[str] = []
    for text in _decoded(stream, name):
        *lines, last = text.split("\n")
        for line in lines:
            rest.append(line + "\n")
            yield "".join(rest)
            rest.clear()
        rest.append(last)
    if line := "".join(rest):
        yield line


def _decompressed(path: Path, stack: contextlib.ExitStack) -> BinaryIO:
    file = stack.enter_context(path.open("rb"))
    if path.suffix.lower() == ".gz":
        return cast(BinaryIO, stack.enter_context(gzip.open(file, "rb")))
    if path.suffix.lower() == ".zst":
        import pyarrow

        # Unlike the package zstandard, it notices a file that was cut off.
        reader = pyarrow.CompressedInputStream(file, "zstd")
        return cast(BinaryIO, stack.enter_context(reader))
    return file


def spooled(stream: BinaryIO) -> BinaryIO:
    """A copy that can be read again and from any place: in memory, or on disk if it is large."""
    spool = tempfile.SpooledTemporaryFile(max_size=64 << 20)  # noqa: SIM115  the caller's
    while block := stream.read(_BLOCK_BYTES):
        spool.write(block)
    spool.seek(0)
    return cast(BinaryIO, spool)

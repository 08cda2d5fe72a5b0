"""Where a text comes from: each kind of source as documents, with a digest of its bytes."""

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from depthcut.errors import SourceError, TextError, nearest
from depthcut.settings import TextSettings
from depthcut.text.formats import FORMATS, Document, format_of, read_file, read_plain, spooled

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class TextSource:
    """A text that was found; reading begins with `documents`."""

    name: str
    """As the user named it."""
    digest: str
    """SHA-256 of the source's bytes (local), or of name, commit, config and split (hub)."""
    reader: Callable[[], Iterator[Document]]

    def documents(self) -> Iterator[Document]:
        """The documents in order, each a string or a list of chat messages; lazily.

        Raises:
            TextError: Not UTF-8, a missing column, a broken line or file.
        """
        return self.reader()


def open_text(text: str | Sequence[str], settings: TextSettings) -> TextSource:
    """A text source by name, or a list of strings (each a document).

    Local files are read once for the digest; nothing is kept in memory.

    Raises:
        SourceError: No such file, an unknown suffix, or a hub data set that cannot be reached.
        TextError: A folder without a text file, or an empty list.
    """
    if not isinstance(text, str):
        return _in_memory(tuple(text))
    if text == "builtin":
        return _builtin()
    if text == "-":
        return _standard_input(settings)
    path = Path(text).expanduser()
    if path.is_dir():
        return _folder(text, path, settings)
    if path.exists():
        return _file(text, path, settings)
    if _looks_like_hub_id(text):
        from depthcut.text.hub import open_hub_text

        name, digest, reader = open_hub_text(text, settings)
        return TextSource(name, digest, reader)
    raise SourceError(_not_found(text, path))


def _in_memory(documents: tuple[str, ...]) -> TextSource:
    if not documents:
        raise TextError("the list of documents is empty: give at least one string")
    digest = hashlib.sha256()
    for document in documents:
        if not isinstance(document, str):
            raise TextError(f"a document must be a string, not {type(document).__name__}")
        _update(digest, document.encode("utf-8", "surrogatepass"))
    return TextSource("in memory", digest.hexdigest(), partial(iter, documents))


def _builtin() -> TextSource:
    from pydoc_data.topics import topics

    documents = tuple(text for _, text in sorted(topics.items()))
    return TextSource("builtin", _in_memory(documents).digest, partial(iter, documents))


def _standard_input(settings: TextSettings) -> TextSource:
    """Spooled, so that the digest and every reading of the documents see the same bytes."""
    spool = spooled(sys.stdin.buffer)
    digest = hashlib.sha256()
    while block := spool.read(_BLOCK_BYTES):
        digest.update(block)

    def documents() -> Iterator[Document]:
        spool.seek(0)
        return read_plain(spool, "standard input", settings.columns)

    return TextSource("-", digest.hexdigest(), documents)


def _file(name: str, path: Path, settings: TextSettings) -> TextSource:
    if format_of(path) is None:
        raise SourceError(
            f"{path}: unknown kind of text file, expected one of {', '.join(FORMATS)} "
            f"(also with .gz or .zst){nearest(path.suffix, FORMATS)}"
        )
    digest = hashlib.sha256()
    for block in _blocks(path):
        digest.update(block)
    return TextSource(name, digest.hexdigest(), partial(read_file, path, settings.columns))


def _folder(name: str, folder: Path, settings: TextSettings) -> TextSource:
    paths = sorted(
        path
        for path in folder.rglob("*")
        if format_of(path)
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not paths:
        raise TextError(
            f"the folder {folder} holds no text file: expected {', '.join(FORMATS)} "
            "(also with .gz or .zst)"
        )
    digest = hashlib.sha256()
    for path in paths:
        _update(digest, path.relative_to(folder).as_posix().encode("utf-8", "surrogateescape"))
        digest.update(path.stat().st_size.to_bytes(8, "little"))
        for block in _blocks(path):
            digest.update(block)

    def documents() -> Iterator[Document]:
        for path in paths:
            yield from read_file(path, settings.columns)

    return TextSource(name, digest.hexdigest(), documents)


def _blocks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb", buffering=0) as file:
            while block := file.read(_BLOCK_BYTES):
                yield block
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error


def _update(digest: "hashlib._Hash", content: bytes) -> None:
    digest.update(len(content).to_bytes(8, "little"))
    digest.update(content)


def _looks_like_hub_id(text: str) -> bool:
    owner, slash, name = text.partition("/")
    plain = (part.replace("-", "").replace("_", "").replace(".", "") for part in (owner, name))
    return (
        bool(slash)
        and not text.startswith((".", "~"))
        and all(part.isalnum() and part.isascii() for part in plain)
        and format_of(Path(text)) is None
        and not Path(owner).is_dir()
    )


def _not_found(text: str, path: Path) -> str:
    siblings = [sibling.name for sibling in path.parent.iterdir()] if path.parent.is_dir() else []
    if "/" not in text:
        siblings.append("builtin")
    return (
        f"no text {text!r}: neither a file or folder here, nor builtin, - or a hub data set "
        f"(owner/name){nearest(path.name, siblings)}"
    )

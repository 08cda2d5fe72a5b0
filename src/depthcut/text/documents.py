"""Where a text comes from: each kind of source as documents, with a digest of its bytes."""

import hashlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec

from depthcut.errors import SettingsError, SourceError, TextError, nearest, short
from depthcut.settings import TextSettings
from depthcut.text.formats import FORMATS, format_of, read_file, read_plain, spooled
from depthcut.text.names import STANDARD_INPUT, exists, named_texts
from depthcut.text.rows import Document

_BLOCK_BYTES = 1 << 20
_WEIGHT = re.compile(r":[\d.]+$")


@dataclass(frozen=True)
class TextSource:
    """A text that was found; reading begins with `documents`."""

    name: str
    """As the user named it, without its weight."""
    digest: str
    """SHA-256 of the source's bytes (local), or of name, commit, config and split (hub)."""
    reader: Callable[[], Iterator[Document]]
    plain: bool = False
    """One plain file: all of it is one document."""

    def documents(self) -> Iterator[Document]:
        """The documents in order, each a string or a list of chat messages; lazily.

        Raises:
            TextError: Not UTF-8, a missing column, a broken line or file.
        """
        return self.reader()


@dataclass(frozen=True)
class Text:
    """What is read: one source, or several with their weights."""

    sources: tuple[TextSource, ...]
    shares: tuple[float, ...]
    """Of the tokens, for each source; they add up to 1."""

    @property
    def digest(self) -> str:
        """A single source's own; of several SHA-256 over theirs and their shares, in order."""
        if len(self.sources) == 1:
            return self.sources[0].digest
        lines = (
            f"{source.digest} {share:.9f}\n"
            for source, share in zip(self.sources, self.shares, strict=True)
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def open_text(settings: TextSettings, documents: Sequence[str] | None = None) -> Text:
    """The texts that the settings name, or a list of strings (each a document) instead of them.

    Local files are read once for the digest; nothing is kept in memory.

    Raises:
        SettingsError: A weight that is no share, or the same text twice.
        SourceError: No such file, an unknown suffix, or a hub data set that cannot be reached.
        TextError: A folder without a text file, or an empty list.
    """
    if documents is not None:
        return Text((_in_memory(tuple(documents)),), (1.0,))
    named = named_texts(settings.text)
    sources: dict[tuple[str, tuple[str, ...]], TextSource] = {}
    for each in named:
        columns = each.columns or settings.columns
        source = _source(each.name, msgspec.structs.replace(settings, columns=columns))
        source = replace(source, name=each.without_weight)
        if (other := sources.setdefault((source.digest, columns), source)) is not source:
            raise SettingsError(
                f"the texts {other.name} and {source.name} are the same: name it once, and give "
                "it the weight of both"
            )
    total = sum(each.weight for each in named)
    return Text(tuple(sources.values()), tuple(each.weight / total for each in named))


def _source(name: str, settings: TextSettings) -> TextSource:
    if name == "builtin":
        return _builtin()
    if name == STANDARD_INPUT:
        return _standard_input(settings)
    path = Path(name).expanduser()
    if exists(path):
        return _folder(name, path, settings) if path.is_dir() else _file(name, path, settings)
    if _looks_like_hub_id(name):
        from depthcut.text.hub import open_hub_text

        found, digest, reader = open_hub_text(name, settings)
        return TextSource(found, digest, reader)
    raise SourceError(_not_found(name, path))


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

    return TextSource(STANDARD_INPUT, digest.hexdigest(), documents, plain=True)


def _file(name: str, path: Path, settings: TextSettings) -> TextSource:
    kind = format_of(path)
    if kind is None:
        raise SourceError(
            f"{path}: unknown kind of text file, expected one of {', '.join(FORMATS)} "
            f"(also with .gz or .zst){nearest(path.suffix, FORMATS)}"
        )
    digest = hashlib.sha256()
    for block in _blocks(path):
        digest.update(block)
    documents = partial(read_file, path, settings.columns)
    return TextSource(name, digest.hexdigest(), documents, plain=FORMATS[kind] is read_plain)


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
    folder = path.parent
    known = [each.name for each in folder.iterdir()] if exists(folder) and folder.is_dir() else []
    if "/" not in text:
        known.append("builtin")
    advice = nearest(path.name, known)
    names = [_WEIGHT.sub("", each) for each in re.split(r"[,\s]+", text) if each]
    if len(names) > 1 and all(exists(Path(each)) for each in names):
        advice = "; several texts are given one by one, in a recipe as a list"
    if (head := path.name.rpartition(":")[0]) in known:
        advice = f"; there is {head}: behind its colon goes a weight, a number such as 2"
    return (
        f"no text {short(text)}: neither a file or folder here, nor builtin, - or a hub data set "
        f"(owner/name){advice}"
    )

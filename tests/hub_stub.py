"""A model hub on loopback: as much of its protocol as fetching a model and a data set needs."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BRANCH = "refined"
"""A revision beside main, of the same commit."""


class _Hub(ThreadingHTTPServer):
    repositories: Mapping[str, Path]
    token: str | None
    seen: list[str]


class _Handler(BaseHTTPRequestHandler):
    server: _Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self._answer(self.rfile.read(length))

    def _answer(self, body: bytes = b"") -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.seen.append(f"{self.command} {path}")
        match = re.fullmatch(
            r"/(?:api/)?(?:(models|datasets)/)?([^/]+/[^/]+)(?:/(revision|tree|paths-info|resolve)"
            r"/([^/]+)/?(.*))?",
            path,
        )
        if match is None:
            return self._send(404, b"{}", {})
        kind, name, verb, revision, rest = match.groups()
        folder = self.server.repositories.get(f"{kind or 'models'}/{name}")
        wanted = self.server.token
        if wanted and self.headers.get("Authorization") != f"Bearer {wanted}":
            folder = None  # as the hub does: it does not tell private from missing
        if folder is None:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if revision not in (None, "main", BRANCH, COMMIT):
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files = {
            str(file.relative_to(folder)): file.read_bytes()
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        if verb == "resolve":
            return self._send_file(files.get(rest))
        if verb in ("tree", "paths-info"):
            asked = re.findall(r'[^"\[\],:{}&=]+', unquote(body.decode())) or list(files)
            return self._send_json([_entry(f, c) for f, c in files.items() if f in asked])
        siblings = [{"rfilename": file} for file in files]
        return self._send_json(
            {"id": name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
        )

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send_file(self, content: bytes | None) -> None:
        if content is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        headers = {
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return self._send(200, content, headers)
        start, stop = int(wanted[1]), int(wanted[2] or len(content) - 1) + 1
        headers["Content-Range"] = f"bytes {start}-{min(stop, len(content)) - 1}/{len(content)}"
        return self._send(206, content[start:stop], headers)

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entry(file: str, content: bytes) -> dict[str, object]:
    oid = hashlib.sha1(content).hexdigest()
    return {"type": "file", "path": file, "size": len(content), "oid": oid}


@contextmanager
def hub(repositories: Mapping[str, Path], *, token: str | None = None) -> Iterator[_Hub]:
    """A hub that serves folders as models/OWNER/NAME and datasets/OWNER/NAME.

    `token`: what a request must carry; without it every repository is unknown. The server's
    `seen` lists the requests.
    """
    server = _Hub(("127.0.0.1", 0), _Handler)
    server.repositories, server.token, server.seen = repositories, token, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def address(server: _Hub) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"

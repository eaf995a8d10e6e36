"""Hugging Face's hub on the loopback, as far as huggingface_hub's file system asks for it: one dataset of a folder."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from perf.remote.server import running

DATASET = "user/pictures"
PAGE = 3  # entries of a page of a listing; the hub's has 1,000


@dataclass
class Hub:
    """folder: of the dataset's only branch. token: which the dataset asks for, '' for a public one. faults: status of
    the next answers with bytes, one each; 'cut' ends after half of the body. requests: method, path and query of each;
    sent: bytes of files. Files of more than 1 KB are stored elsewhere, as large files are on the hub: they are
    redirected to another host, with a signature. leaked: whether that host was sent the token. gated: whether the
    token's user may not read files."""

    folder: Path
    token: str = ""
    faults: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    sent: int = 0
    leaked: bool = False
    gated: bool = False
    address: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def port(self) -> str:
        return self.address.rpartition(":")[2]

    def revision(self) -> str:
        """The commit: a digest of all files, so that a change is another one."""
        return hashlib.sha1("".join(entry["oid"] for entry in self.entries("", True)).encode()).hexdigest()

    def entries(self, below: str, recursive: bool) -> list[dict[str, Any]]:
        paths = (self.folder / below).rglob("*") if recursive else (self.folder / below).iterdir()
        return [self._entry(path) for path in sorted(paths)]

    def _entry(self, path: Path) -> dict[str, Any]:
        name = path.relative_to(self.folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "size": 0, "oid": hashlib.sha1(name.encode()).hexdigest()}
        data = path.read_bytes()
        entry = {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        if len(data) > 1000:
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry


@contextmanager
def serving_hub(folder: Path, token: str = "") -> Iterator[Hub]:
    state = Hub(folder, token)

    class Handler(_Handler):
        hub = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.address = f"http://localhost:{server.server_address[1]}"
    with running(server):
        yield state


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, url = self.hub, urlsplit(self.path)
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        with hub._lock:
            hub.requests.append(f"{self.command} {self.path}")
        given = self.headers.get("Authorization", "")
        if url.path.startswith("/stored/"):
            hub.leaked |= bool(given)
            if not url.query.startswith("Signature="):
                return self._say(403)
            return self._file(hub.folder / unquote(url.path.removeprefix("/stored/")))
        if hub.token and given != f"Bearer {hub.token}":
            return self._say(401, **{"X-Error-Code": "RepoNotFound"})
        api, files = f"/api/datasets/{DATASET}", f"/datasets/{DATASET}/resolve/"
        if url.path == api or url.path.startswith(f"{api}/revision/"):
            revision = unquote(url.path.removeprefix(api).removeprefix("/revision/")) or "main"
            if revision not in ("main", hub.revision()):
                return self._say(404, **{"X-Error-Code": "RevisionNotFound"})
            return self._json({"id": DATASET, "sha": hub.revision(), "siblings": [], "tags": [], "private": False})
        kind, _, rest = url.path.removeprefix(api + "/").partition("/")
        name = unquote(rest.partition("/")[2])
        if kind == "tree":
            if not (hub.folder / name).is_dir():
                return self._say(404, **{"X-Error-Code": "EntryNotFound"})
            query = parse_qs(url.query)
            return self._page(hub.entries(name, query["recursive"] == ["true"]), int(query.get("cursor", ["0"])[0]))
        if kind == "paths-info":
            return self._json([hub._entry(hub.folder / path) for path in parse_qs(text)["paths"]])
        revision, _, name = unquote(url.path.removeprefix(files)).partition("/")
        file = hub.folder / name
        if not url.path.startswith(files) or not file.is_file():
            return self._say(404, **{"X-Error-Code": "RepoNotFound" if DATASET not in url.path else "EntryNotFound"})
        if revision not in ("main", hub.revision()):
            return self._say(404, **{"X-Error-Code": "RevisionNotFound"})
        if hub.gated:
            return self._say(403, **{"X-Error-Code": "GatedRepo"})
        if file.stat().st_size > 1000:
            signed = f"http://127.0.0.1:{hub.port}/stored/{name}?Signature=SECRET"
            return self._say(302, Location=signed, **{"X-Repo-Commit": hub.revision()})
        return self._file(file)

    def _page(self, entries: list[dict[str, Any]], first: int) -> None:
        more = {}
        if first + PAGE < len(entries):
            path = self.path.partition("&cursor=")[0]
            more["Link"] = f'<{self.hub.address}{path}&cursor={first + PAGE}>; rel="next"'
        self._json(entries[first : first + PAGE], **more)

    def _file(self, file: Path) -> None:
        with self.hub._lock:
            fault = self.hub.faults.pop(0) if self.hub.faults else ""
        if fault.isdigit():
            self._say(int(fault))
            return
        data = file.read_bytes()
        start, end, wanted = 0, len(data), self.headers.get("Range", "")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1, len(data))
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.end_headers()
        if self.command == "HEAD":
            return
        body = data[start : start + (end - start) // 2] if fault == "cut" else data[start:end]
        self.close_connection = fault == "cut"
        self.wfile.write(body)
        with self.hub._lock:
            self.hub.sent += len(body)

    def _json(self, value: Any, **headers: str) -> None:
        self._say(200, json.dumps(value).encode(), **headers)

    def _say(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""

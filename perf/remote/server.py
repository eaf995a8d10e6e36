"""A web server on the loopback that serves a folder by byte ranges, slowly and with faults, as a test asks for."""

from __future__ import annotations

import hashlib
import socket
import ssl
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

PIECE = 1 << 16


@dataclass
class ObjectServer:
    """latency: seconds before each answer. rate: bytes a second of all answers together, 0 without a limit.

    faults: what the next GETs do, one each: '503', '429', 'reset', 'cut' (half of the body) or 'flipped' (a wrong
    byte). gone: names that get 404. requests: number of GETs and HEADs; sent: bytes of the bodies of GETs; asked: GETs
    by name.
    """

    folder: Path
    latency: float = 0.0
    rate: float = 0.0
    faults: list[str] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)
    requests: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    address: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _free_at: float = 0.0  # when the link has sent all bytes that were given to it

    def take_fault(self) -> str:
        with self._lock:
            return self.faults.pop(0) if self.faults else ""

    def pass_link(self, count: int) -> None:
        """Wait until `count` bytes have gone over the link."""
        if not self.rate:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + count / self.rate
            wait = self._free_at - now
        time.sleep(max(0.0, wait))


@contextmanager
def serving(
    folder: Path, certificate: tuple[Path, Path] | None = None, latency: float = 0.0, rate: float = 0.0
) -> Iterator[ObjectServer]:
    """The server of a folder. certificate: files of certificate and key, for https."""
    state = ObjectServer(folder, latency, rate)

    class Handler(_Handler):
        objects = state

    server = _Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    state.address = f"http{'s' if certificate else ''}://localhost:{server.server_address[1]}"
    with running(server):
        yield state


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[None]:
    """Serve in a thread during the block."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def server_process(folder: Path, latency: float, rate: float) -> Iterator[str]:
    """A server in a process of its own; its address."""
    ours, its = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_serve, args=(folder, latency, rate, its), daemon=True)
    process.start()
    its.close()
    try:
        yield ours.recv()
    finally:
        ours.close()
        process.join(10)


def _serve(folder: Path, latency: float, rate: float, pipe: Any) -> None:
    with serving(folder, latency=latency, rate=rate) as server:
        pipe.send(server.address)
        try:
            pipe.recv()
        except EOFError:
            return


class _Server(ThreadingHTTPServer):
    def handle_error(self, *request: Any) -> None:
        """Says nothing where the client was killed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*request)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    objects: ObjectServer

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        objects, name = self.objects, unquote(urlsplit(self.path).path).lstrip("/")
        with objects._lock:
            objects.requests[self.command] += 1
            objects.asked[name] += body
        time.sleep(objects.latency)
        fault = objects.take_fault() if body else ""
        if fault in ("503", "429"):
            return self._status(int(fault))
        if fault == "reset":
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return None
        file = objects.folder / name
        if name in objects.gone or not file.is_file():
            return self._status(404)
        status = file.stat()
        tag = f'"{hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:20]}"'
        if self.headers.get("If-Match", tag) != tag:
            return self._status(412)
        start, end = 0, status.st_size
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1, status.st_size)
            if start >= status.st_size:
                return self._status(416)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{status.st_size}")
        self.send_header("ETag", tag)
        self.end_headers()
        if body:
            self._send(file, start, end, fault)
        return None

    def _send(self, file: Path, start: int, end: int, fault: str) -> None:
        stop = start + (end - start) // 2 if fault == "cut" else end
        with file.open("rb") as source:
            source.seek(start)
            for at in range(start, stop, PIECE):
                piece = source.read(min(PIECE, stop - at))
                if fault == "flipped" and at == start:
                    piece = bytes([piece[0] ^ 255]) + piece[1:]
                self.objects.pass_link(len(piece))
                try:
                    self.wfile.write(piece)
                except OSError:
                    self.close_connection = True
                    return
                with self.objects._lock:
                    self.objects.sent += len(piece)
        if fault == "cut":
            self.close_connection = True

    def _status(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""

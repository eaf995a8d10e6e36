"""Byte ranges over connections that stay open: the exchange that training repeats for each image.

urllib3 takes seven times as much CPU time for 76 kB. What is not a plain answer with a length (a redirect, chunks, a
host that cannot be reached) is left to urllib3.
"""

from __future__ import annotations

import socket
import ssl
import struct
import weakref
from collections import defaultdict
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import NamedTuple

import urllib3

HEAD = 1 << 13  # bytes of an answer before its body, at most
BUFFER = 1 << 20  # bytes that a connection keeps for answers: fresh memory costs as much time as the call that fills it


class Answer(NamedTuple):
    """headers: by name in small letters."""

    status: int
    headers: Mapping[str, str]
    data: bytes


class Place(NamedTuple):
    secure: bool
    host: str
    port: int


class Connection(NamedTuple):
    socket: socket.socket
    buffer: bytearray


class Connections:
    """Kept connections to web servers. Safe to share between threads.

    timeout: seconds of a connection and of each wait for bytes.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._idle: dict[Place, list[Connection]] = defaultdict(list)
        self._left: set[Place] = set()  # hosts whose answers are left to urllib3
        weakref.finalize(self, _close, self._idle)

    def get(self, address: str, headers: Mapping[str, str], expected: int) -> Answer | None:
        """The answer to a GET; None if urllib3 is to ask. expected: bytes of the body, about. Raises TimeoutError, or
        ConnectionError for a connection that breaks within an answer."""
        place, target, host = _parsed(address)
        if place in self._left:
            return None
        lines = [f"GET {target} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers.items())]
        request = "\r\n".join([*lines, "\r\n"]).encode("latin-1")
        while True:
            connection = kept = self._kept(place)
            try:
                connection = kept or self._open(place)
            except OSError:
                return None
            try:
                buffer = _sized(connection.buffer, HEAD + expected)
                answer = _exchange(connection.socket, buffer, request)
            except BaseException as error:
                connection.socket.close()
                if isinstance(error, BlockingIOError):
                    raise TimeoutError from None
                if kept is None or not isinstance(error, Unanswered):
                    raise
                continue  # the server closed it while it was idle
            if answer is None or 300 <= answer.status < 400:
                connection.socket.close()
                self._left.add(place)
                return None
            if answer.headers.get("connection", "").lower() == "close":
                connection.socket.close()
            else:
                self._idle[place].append(connection._replace(buffer=buffer if len(buffer) <= BUFFER else bytearray()))
            return answer

    def _kept(self, place: Place) -> Connection | None:
        try:
            return self._idle[place].pop()
        except IndexError:
            return None

    def _open(self, place: Place) -> Connection:
        connection = socket.create_connection((place.host, place.port), self._timeout)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not place.secure:
            connection.settimeout(None)  # the kernel counts the time: a body is one call of the system
            span = struct.pack("ll", int(self._timeout), int(self._timeout % 1 * 1e6))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, span)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, span)
            return Connection(connection, bytearray())
        try:
            return Connection(_certificates().wrap_socket(connection, server_hostname=place.host), bytearray())
        except BaseException:
            connection.close()
            raise


class Unanswered(ConnectionError):
    """The connection ended before the first byte of an answer."""


def _sized(buffer: bytearray, size: int) -> bytearray:
    return buffer if len(buffer) >= size else bytearray(size)


def _exchange(connection: socket.socket, buffer: bytearray, request: bytes) -> Answer | None:
    """The answer to a request; None if it does not say its length."""
    view, count, body = memoryview(buffer), 0, -1
    try:
        connection.sendall(request)
        # A server that waits for an acknowledgment before it sends the rest of an answer would wait 40 ms.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        count = connection.recv_into(view)
    except ConnectionError:
        pass
    if not count:
        raise Unanswered("no answer")
    while (body := buffer.find(b"\r\n\r\n", 0, count) + 4) < 4:
        if count == len(buffer):
            return None
        count += _some(connection.recv_into(view[count:]))
    status, *lines = buffer[: body - 4].decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    length = headers.get("content-length", "")
    if not length.isdigit() or "transfer-encoding" in headers or int(length) > len(buffer) - body:
        return None
    end = body + int(length)
    more = () if isinstance(connection, ssl.SSLSocket) else (0, socket.MSG_WAITALL)
    while count < end:
        count += _some(connection.recv_into(view[count:end], *more))
    return Answer(int(status.split(" ")[1]), headers, bytes(view[body:end]))


def _some(count: int) -> int:
    if not count:
        raise ConnectionError("the answer was cut")
    return count


@lru_cache(4096)
def _parsed(address: str) -> tuple[Place, str, str]:
    """Where an address leads, the target of a request, and the value of its Host."""
    url = urllib3.util.parse_url(address)
    secure = url.scheme == "https"
    host = (url.host or "").strip("[]")
    return Place(secure, host, url.port or (443 if secure else 80)), url.request_uri, url.netloc or ""


@cache
def _certificates() -> ssl.SSLContext:
    return ssl.create_default_context()


def _close(idle: dict[Place, list[Connection]]) -> None:
    for connections in idle.values():
        for connection in connections:
            connection.socket.close()

"""Kept connections: one for many requests; what a server does otherwise is left to urllib3, or is one line."""

import socket
import threading
import time
from contextlib import suppress

import pytest

from pipeline.dataset.table import DatasetError
from pipeline.remote.address import RemoteObject
from pipeline.remote.connections import Connections, Unanswered
from pipeline.remote.faults import Patience
from pipeline.remote.store import open_store, read_range

BODY = b"0123456789"
PLAIN = b"HTTP/1.1 206 Partial Content\r\nContent-Length: 10\r\nContent-Range: bytes 0-9/10\r\n\r\n" + BODY
CHUNKS = b"HTTP/1.1 206 Partial Content\r\nTransfer-Encoding: chunked\r\n\r\na\r\n" + BODY + b"\r\n0\r\n\r\n"
BUSY = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
CLOSE, SILENCE = b"", b"HTTP/1.1 206 Partial Content\r\nContent-Length: 10\r\n\r\n01234"


class Script:
    """A server that answers each request by the next of `answers`; CLOSE ends the connection. connections: how many
    there were; requests: their first lines."""

    def __init__(self, answers, pieces=1):
        self.pieces = pieces  # of an answer; the system holds a small one back until the one before is acknowledged
        self.answers, self.connections, self.requests = list(answers), 0, []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while self.answers:
            connection, _ = self._socket.accept()
            self.connections += 1
            with connection, suppress(ConnectionError):
                while self.answers and (request := connection.recv(1 << 16)):
                    self.requests.append(request.split(b"\r\n")[0].decode())
                    answer = self.answers.pop(0)
                    if answer == CLOSE:
                        break
                    answer = answer.replace(b"HERE", self.address.encode())
                    for piece in range(self.pieces):
                        share = -(-len(answer) // self.pieces)
                        connection.sendall(answer[piece * share : (piece + 1) * share])
        self._socket.close()


def read(script, name="x.tar", times=1):
    store = open_store(f"{script.address}/{name}", Patience(timeout=5, first=0.01, most=0.02, budget=5))
    item = RemoteObject(name, f"{script.address}/{name}", 10, "")
    return [read_range(store, item, 0, 10) for _ in range(times)]


def test_requests_share_a_connection():
    script = Script([PLAIN] * 3)
    assert read(script, times=3) == [BODY] * 3
    assert script.connections == 1 and script.requests == ["GET /x.tar HTTP/1.1"] * 3


def test_a_connection_that_the_server_closed_meanwhile_is_opened_again():
    script = Script([PLAIN, CLOSE, PLAIN])
    assert read(script, times=2) == [BODY] * 2
    assert script.connections == 2


@pytest.mark.parametrize("head", [b"302 Found", b"307 Temporary Redirect"])
def test_a_redirect_is_followed_by_urllib3(head):
    there = b"HTTP/1.1 " + head + b"\r\nLocation: HERE/y.tar\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    script = Script([there, there, PLAIN])
    assert read(script) == [BODY]
    assert [request.split()[1] for request in script.requests] == ["/x.tar", "/x.tar", "/y.tar"]


def test_an_answer_in_chunks_is_read():
    assert read(Script([CHUNKS, CHUNKS])) == [BODY]


@pytest.mark.parametrize("answer", [SILENCE, SILENCE[:20]])
def test_a_server_that_falls_silent_within_an_answer_is_asked_again_after_the_timeout(answer):
    script = Script([answer, PLAIN])
    store = open_store(f"{script.address}/x.tar", Patience(timeout=0.2, first=0.01, most=0.02, budget=60))
    assert read_range(store, RemoteObject("x.tar", f"{script.address}/x.tar", 10, ""), 0, 10) == BODY


def test_the_pause_that_a_throttling_server_asks_for_is_kept():
    begun = time.monotonic()
    assert read(Script([BUSY, PLAIN])) == [BODY]
    assert time.monotonic() - begun >= 1


def test_a_server_that_sends_the_rest_after_an_acknowledgment_need_not_wait_for_it():
    script = Script([PLAIN] * 60, pieces=2)
    store = open_store(f"{script.address}/x.tar")
    item, seconds = RemoteObject("x.tar", f"{script.address}/x.tar", 10, ""), []
    for _ in range(60):
        begun = time.monotonic()
        assert read_range(store, item, 0, 10) == BODY
        seconds.append(time.monotonic() - begun)
    assert script.connections == 1 and sorted(seconds)[30] < 0.03  # else 0.04 for most


def test_a_name_with_blanks_and_umlauts_is_asked_for_as_an_address_has_it():
    script = Script([PLAIN])
    assert read(script, "a b/Zürich.tar") == [BODY]
    assert script.requests == ["GET /a%20b/Z%C3%BCrich.tar HTTP/1.1"]


@pytest.mark.slow(seconds=3)
def test_a_head_without_an_end_is_no_answer():
    script = Script([b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000] * 2)
    with pytest.raises(DatasetError, match=r"x\.tar: .* tries"):
        read(script)


def test_a_host_that_ends_every_connection_is_not_asked_without_end():
    with pytest.raises(Unanswered):
        Connections(5).get(Script([CLOSE]).address + "/x.tar", {}, 10)

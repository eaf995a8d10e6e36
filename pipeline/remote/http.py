"""Objects on a web server: a single file, numbered files in braces, or a list of addresses; and their byte ranges."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from urllib.parse import urljoin, urlsplit

import urllib3

from pipeline.dataset.table import DatasetError
from pipeline.remote.address import RemoteObject, expanded, mirror_name, shown
from pipeline.remote.connections import Answer, Connections
from pipeline.remote.faults import Missing, Patience, Temporary, changed, retrying

LIST = ".txt"
MISSING = "missing"
LIST_BYTES = 1 << 31
RETRIED = (408, 429, 500, 502, 503, 504)
CONNECTIONS = 32
CERTIFICATE = "its certificate is not accepted"


class HttpStore:
    """Reads from web servers that serve byte ranges. The certificates are those of OpenSSL (`SSL_CERT_FILE`), names and
    passwords those of ~/.netrc. Safe to share between threads."""

    def __init__(self, address: str, patience: Patience) -> None:
        self.address, self.patience = address, patience
        timeout = urllib3.Timeout(connect=patience.timeout, read=patience.timeout)
        # Only redirects: `retrying` repeats everything else, with pauses that the user's budget bounds.
        retries = urllib3.Retry(total=5, redirect=5, connect=0, read=0, status=0, other=0)
        self._pool = urllib3.PoolManager(maxsize=CONNECTIONS, num_pools=64, timeout=timeout, retries=retries)
        self._kept = Connections(patience.timeout)

    def list(self) -> list[RemoteObject]:
        """The objects, by name. A list has a line for each: an address, absolute or relative to the list, and if it is
        known the size in bytes and the ETag, separated by tabs. Raises DatasetError, Missing."""
        if urlsplit(self.address).path.endswith(LIST):
            lines = self._text().splitlines()
            found = [_line(line, self.address) for line in lines if line.strip() and not line.startswith("#")]
        else:
            found = [RemoteObject("", address, -1, "") for address in expanded(self.address)]
        folder = urljoin(self.address, ".")
        named = [each._replace(name=_name(each.address, folder)) for each in found]
        with ThreadPoolExecutor(CONNECTIONS) as pool:  # they wait for the server
            alone = len(named) == 1
            return sorted(pool.map(lambda item: self._sized(item, alone), [each for each in named if each.name]))

    def look_up(self, address: str, name: str) -> RemoteObject:
        """The object at an address. Raises Missing if nothing is there."""
        return retrying(lambda: self._head(address, name), address, self.patience)

    def read(
        self, item: RemoteObject, start: int, end: int, signed: str = "", more: Mapping[str, str] | None = None
    ) -> bytes:
        """Its bytes from `start` to before `end`, one try. signed, more: an address and headers for it that messages do
        not show. Raises Missing, Changed, Temporary, DatasetError."""
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity", **(more or {})}
        if item.tag.startswith('"'):
            headers["If-Match"] = item.tag
        answer = self._request("GET", signed or item.address, headers, end - start)
        if answer.status in (412, 416):
            raise changed(item.address)
        if answer.status != 206 and not (answer.status == 200 and end - start == item.size):
            problem = f"{shown(item.address)}: the server does not serve byte ranges (status {answer.status})"
            raise DatasetError(f"{problem}; copy the data to one that does, or to a disk")
        total = answer.headers.get("content-range", "").rpartition("/")[2]
        if (total.isdigit() and int(total) != item.size) or (item.tag and _tag(answer.headers) not in (item.tag, "")):
            raise changed(item.address)
        if len(answer.data) != end - start:
            raise Temporary(f"{len(answer.data)} bytes in place of {end - start}")
        return answer.data

    def _text(self) -> str:
        def action() -> str:
            answer = self._request("GET", self.address, {})
            if len(answer.data) > LIST_BYTES or answer.status != 200:
                raise DatasetError(
                    f"{shown(self.address)}: no list (status {answer.status}); give a text with addresses"
                )
            return answer.data.decode("utf-8", "replace")

        return retrying(action, self.address, self.patience)

    def _sized(self, item: RemoteObject, alone: bool) -> RemoteObject:
        """With size and tag. One of several that is missing has 0 bytes: the scan quarantines it, as an empty file."""
        try:
            return item if item.size >= 0 else self.look_up(item.address, item.name)
        except Missing:
            if alone:
                raise
            return item._replace(size=0, tag=MISSING)

    def _head(self, address: str, name: str) -> RemoteObject:
        answer = self._request("HEAD", address, {"Accept-Encoding": "identity"})
        size = answer.headers.get("content-length", "")
        if answer.status != 200 or not size.isdigit():
            problem = f"{shown(address)}: the server does not say its size (status {answer.status})"
            raise DatasetError(f"{problem}; give a list with sizes, or copy the data to a disk")
        return RemoteObject(name, address, int(size), _tag(answer.headers))

    def _request(self, method: str, address: str, headers: Mapping[str, str], expected: int = -1) -> Answer:
        """expected: bytes of the answer, of a byte range."""
        if "Authorization" not in headers:
            headers = {**headers, **_login(urlsplit(address).hostname)}
        try:
            answer = self._kept.get(address, headers, expected) if expected >= 0 else None
            answer = answer or self._asked(method, address, headers)
        except TimeoutError:
            raise Temporary("no answer in time") from None
        except ConnectionError:
            raise Temporary("the connection broke") from None
        except urllib3.exceptions.LocationValueError:
            raise DatasetError(f"{shown(address)}: not an address; write https://host/path") from None
        except urllib3.exceptions.HTTPError as error:
            reason = _reason(error)
            if reason == CERTIFICATE:
                raise DatasetError(f"{shown(address)}: {reason}; name its authority in SSL_CERT_FILE") from None
            raise Temporary(reason) from None
        if answer.status in RETRIED:
            wait = answer.headers.get("retry-after", "")
            raise Temporary(f"status {answer.status}", float(wait) if wait.isdigit() else 0.0)
        if answer.status in (404, 410):
            raise Missing(f"{shown(address)}: no such object")
        if answer.status in (401, 403):
            problem = f"{shown(address)}: the server refuses access (status {answer.status})"
            raise DatasetError(f"{problem}; put name and password into ~/.netrc, or sign the addresses of the list")
        return answer

    def _asked(self, method: str, address: str, headers: Mapping[str, str]) -> Answer:
        answer = self._pool.request(method, address, headers=headers)
        return Answer(answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.data)


def _line(line: str, address: str) -> RemoteObject:
    where, *more = line.strip().split("\t")
    size = more[0] if more else ""
    if size and not size.isdigit():
        raise DatasetError(f"{shown(address)}: {size!r} is no size; a line is an address, and by tabs size and ETag")
    return RemoteObject("", urljoin(address, where), int(size) if size else -1, more[1] if len(more) > 1 else "")


def _name(address: str, folder: str) -> str:
    parts, base = urlsplit(address), urlsplit(folder)
    inside = parts.netloc == base.netloc and parts.path.startswith(base.path)
    return mirror_name(parts.path[len(base.path) :] if inside else f"{parts.hostname}{parts.path}")


def _tag(headers: Mapping[str, str]) -> str:
    return headers.get("etag") or headers.get("last-modified") or ""


def _reason(error: urllib3.exceptions.HTTPError) -> str:
    """What failed, in words; the error's own text holds the address with its query."""
    cause = getattr(error, "reason", None) or error
    kinds = {
        "ConnectTimeoutError": "no connection in time", "ReadTimeoutError": "no answer in time",
        "NewConnectionError": "no connection", "NameResolutionError": "the host's name is not known",
        "SSLError": CERTIFICATE, "ProtocolError": "the connection broke",
        "IncompleteRead": "the answer was cut",
    }  # fmt: skip
    return kinds.get(type(cause).__name__, type(cause).__name__)


@cache
def _login(host: str | None) -> dict[str, str]:
    """The header for the host's name and password in ~/.netrc (or `NETRC`); {} without."""
    try:
        found = netrc.netrc(os.environ.get("NETRC")).authenticators(host or "")
    except (OSError, netrc.NetrcParseError):
        return {}
    return urllib3.make_headers(basic_auth=f"{found[0]}:{found[2]}") if found else {}

"""An address as a store of objects: lists them, and reads byte ranges with retries."""

from __future__ import annotations

from threading import Event
from typing import Protocol

from pipeline.remote.address import RemoteObject, parsed
from pipeline.remote.faults import PATIENCE, UNSTOPPED, Patience, retrying


class Store(Protocol):
    """Objects at `address`; see `HttpStore` and `BucketStore`."""

    address: str
    patience: Patience

    def list(self) -> list[RemoteObject]: ...

    def look_up(self, address: str, name: str) -> RemoteObject: ...

    def read(self, item: RemoteObject, start: int, end: int) -> bytes: ...


def open_store(path: object, patience: Patience = PATIENCE) -> Store:
    """The store of an address. Raises DatasetError if its library is not installed. It makes no request."""
    scheme, address = parsed(path)
    if scheme in ("http", "https"):
        from pipeline.remote.http import HttpStore

        return HttpStore(address, patience)
    from pipeline.remote.bucket import BucketStore

    return BucketStore(scheme, address, patience)


def read_range(store: Store, item: RemoteObject, start: int, end: int, stop: Event = UNSTOPPED) -> bytes:
    """Bytes `start` to before `end` of an object, with retries until `stop` is set. Raises Missing, DatasetError."""
    if start == end:
        return b""
    return retrying(lambda: store.read(item, start, end), item.address, store.patience, stop)

"""Objects in a bucket, through fsspec: s3 (s3fs), gs (gcsfs) and hf (huggingface_hub), and their byte ranges.

Credentials, endpoints and proxies are where those libraries look for them: ~/.aws, AWS_*, AWS_ENDPOINT_URL,
GOOGLE_APPLICATION_CREDENTIALS, HF_TOKEN.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, TypeVar

from pipeline.dataset.table import DatasetError
from pipeline.remote.address import RemoteObject, mirror_name, shown
from pipeline.remote.faults import Changed, Missing, Patience, Temporary, changed, retrying
from pipeline.remote.http import HttpStore
from pipeline.remote.hub import at_commit, stored_at

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub"}
TAGS = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "updated", "mtime")
REMOTE_LIBRARIES = (
    "botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "huggingface_hub", "requests", "httpx", "httpx2",
)  # fmt: skip
NO_LOGIN = ("NoCredentials", "PartialCredentials", "TokenRetrieval", "DefaultCredentials")
SIGNED_FOR = 3600  # seconds; a signature is used for half of them

Result = TypeVar("Result")


class BucketStore:
    """Reads from a bucket. Safe to share between threads."""

    def __init__(self, scheme: str, address: str, patience: Patience) -> None:
        import fsspec

        self.address, self.patience = address, patience
        try:
            self._files: Any = fsspec.filesystem(scheme, skip_instance_cache=True)
        except ImportError:
            package = PACKAGES[scheme]
            raise DatasetError(f"{scheme}:// needs {package}: .venv/bin/python -m pip install {package}") from None
        self._scheme = scheme
        self._exact = {"cache_type": "none"} if scheme == "hf" else {}  # else it reads 5 MB ahead
        self._web, self._signs = HttpStore("", patience), scheme in ("s3", "hf")
        self._signed = lru_cache(4096)(self._sign)

    def list(self) -> list[RemoteObject]:
        """The objects in and below the address, or those of its pattern, by name. Raises DatasetError, Missing."""
        path = self._files._strip_protocol(self.address)
        if self._scheme == "hf":
            path = retrying(lambda: self._asked(lambda: at_commit(self._files, path)), self.address, self.patience)
        start = min((path.find(sign) for sign in "*?" if sign in path), default=-1)  # of a pattern

        def action() -> dict[str, dict[str, Any]]:
            self._files.invalidate_cache()
            return self._files.find(path, detail=True) if start < 0 else self._files.glob(path, detail=True)

        found = retrying(lambda: self._asked(action), self.address, self.patience)
        if start >= 0 or list(found) == [path]:
            folder = path[: start if start >= 0 else None].rpartition("/")[0]
        else:
            folder = path
        items = []
        for key, info in sorted(found.items()):
            name = mirror_name(key.removeprefix(folder).lstrip("/"))
            if name and info["type"] == "file":
                items.append(RemoteObject(name, f"{self._scheme}://{key}", int(info["size"]), _tag(info)))
        if not items:
            raise Missing(f"{self.address}: no such object or folder")
        return items

    def look_up(self, address: str, name: str) -> RemoteObject:
        """The object at an address. Raises Missing if nothing is there."""

        def action() -> dict[str, Any]:
            self._files.invalidate_cache()
            return self._files.info(address)

        info = retrying(lambda: self._asked(action), address, self.patience)
        return RemoteObject(name, address, int(info["size"]), _tag(info))

    def read(self, item: RemoteObject, start: int, end: int) -> bytes:
        """Its bytes from `start` to before `end`, one try. Raises Missing, Changed, Temporary, DatasetError.

        S3 is asked over a signed address, which takes an eighth of the CPU time of s3fs, and compares the ETag; the hub
        of Hugging Face where a file of the commit is stored. fsspec does not say of which version bytes are: the caller
        looks at the tag (a file) or a checksum (an image).
        """
        if self._signs:
            try:
                signed, headers = self._signed(item.address, int(time.time() * 2 / SIGNED_FOR))
                asked = item._replace(tag="") if self._scheme == "hf" else item  # the hub's tag is not the ETag
                return self._web.read(asked, start, end, signed, headers)
            except Changed:
                raise
            except DatasetError:  # the library has a way of its own, or the credentials are other ones now
                self._signed.cache_clear()
        try:
            read = partial(self._files.cat_file, item.address, start=start, end=end, **self._exact)
            data = bytes(self._asked(read))
            if len(data) != end - start:
                raise Temporary(f"{len(data)} bytes in place of {end - start}")
        except Temporary:
            if self.look_up(item.address, item.name)[2:] != item[2:]:
                raise changed(item.address) from None
            raise
        return data

    def _sign(self, address: str, period: int) -> tuple[str, dict[str, str]]:
        """An address with a signature, and headers. period: half hours, each with a signature of its own. Raises
        DatasetError; where the hub is asked for it, also Missing and Temporary."""
        if self._scheme == "hf":
            stored = self._asked(lambda: stored_at(self._files, address))
            if stored is None:
                self._signs = False
                raise DatasetError("no repository")
            return stored
        try:
            return str(self._files.sign(address, expiration=SIGNED_FOR)), {}
        except Exception:  # of any library below: s3fs then reads in its own way, and says what is wrong
            self._signs = False
            raise DatasetError("no signature") from None

    def _asked(self, action: Callable[[], Result]) -> Result:
        """The result of a request; the libraries' many errors as ours."""
        try:
            return action()
        except Exception as error:
            name, status = type(error).__name__, getattr(getattr(error, "response", None), "status_code", 0)
            if isinstance(error, FileNotFoundError) or status == 404:
                private = ", or a private one that HF_TOKEN does not open" if self._scheme == "hf" else ""
                raise Missing(f"{shown(self.address)}: no such object{private}") from None
            if isinstance(error, PermissionError) or status in (401, 403):
                problem = f"{shown(self.address)}: access denied"
                raise DatasetError(f"{problem}; check the credentials that {PACKAGES[self._scheme]} finds") from None
            if name.startswith(NO_LOGIN):
                advice = f"{PACKAGES[self._scheme]} looks for them in its own files and variables"
                raise DatasetError(f"{shown(self.address)}: no credentials; {advice}") from None
            library = type(error).__module__.partition(".")[0]
            if isinstance(error, (OSError, TimeoutError)) or library in REMOTE_LIBRARIES:
                raise Temporary(name) from None  # not its text, which may hold a signed address
            raise


def _tag(info: dict[str, Any]) -> str:
    return next((str(info[key]) for key in TAGS if info.get(key)), "")

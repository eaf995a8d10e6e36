"""The mirror of remote objects below `data.cache`: fetches what is new or has changed, once for a node.

<data.cache>/remote/<name>-<hash of the address>/
    files/           the objects, under their names; each complete, verified and renamed into place
    index.jsonl      size and tag of each
    probes/          only without images: what the scan found out about each shard
    images/          only without images: those that training needs next (`pipeline.remote.records`)
    partial/         what is being fetched; a kill leaves files there, which the next start deletes
"""

from __future__ import annotations

import copy
import fcntl
import hashlib
import json
import os
import shutil
import sys
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from common.cli import note
from common.files import lock, write_atomically
from common.progress import progress_bar
from config.schema.ranges import bytes_of
from pipeline.dataset.sniff import has_extension
from pipeline.dataset.table import DECODE, HEADERS, DatasetError
from pipeline.remote.address import RemoteObject, is_remote, parsed, shown, with_slashes
from pipeline.remote.faults import Missing
from pipeline.remote.fetching import fault_of_disk, fetch
from pipeline.remote.heads import image_heads, shard_heads
from pipeline.remote.http import MISSING
from pipeline.remote.index import Held, Index
from pipeline.remote.known import Known, known_beton, known_tars
from pipeline.remote.probes import APART, FILES, IMAGES, PROBES, ShardProbes, probes_file, save_probes
from pipeline.remote.skeletons import comes_apart, images_apart, shard_kind, take_apart
from pipeline.remote.store import Store, open_store

CACHE_BYTES = "100GB"
UNBOUNDED = sys.maxsize  # for cache_bytes: all objects are kept whole
BOUND = "cache_bytes"
GROUP, IMAGES_OF_GROUP = 256 << 20, 4096  # images that are on the disk at once before they are scanned
PARTIAL = "partial"
_in_use: dict[Path, IO[str]] = {}  # shared locks of the mirrors that this process reads, until it ends


def with_local_paths(data: Any, progress: bool) -> Any:
    """A recipe's `data` section with the paths of mirrors in place of addresses. Raises DatasetError."""
    remote = [name for name in ("path", "test") if data.get(name) and is_remote(data[name])]
    if not remote:
        return data
    check = DECODE if (data.get("check") or DECODE) == DECODE else HEADERS
    local, workers = copy.deepcopy(data), data["workers"] or len(os.sched_getaffinity(0))
    for name in remote:
        bound = bytes_of(data["cache_bytes"]) if data.get("cache_bytes") else None
        local[name] = str(local_path(data[name], Path(data["cache"]), bound, workers, progress, f"data.{name}", check))
    return local


def local_path(
    path: object,
    cache: Path,
    cache_bytes: int | None,
    workers: int,
    progress: bool = True,
    setting: str = "data.path",
    check: str = DECODE,
) -> Path:
    """The path in the mirror for an address: a folder, a file or a pattern, as the address is. All its objects are
    there, or, if they have more than `cache_bytes`, the skeletons of its shards (`pipeline.remote.skeletons`).

    cache_bytes: None leaves a mirror as it is, and is CACHE_BYTES for a new one. workers: processes that decode. check:
    HEADERS fetches only the heads of images that are not kept, see `SampleTable`. Raises DatasetError with one line
    that begins with `setting`.
    """
    where = shown(with_slashes(path))
    try:
        where = parsed(path)[1]
        store, folder = open_store(where), mirror_folder(cache, where)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _taken(folder / "lock", f"{check} {cache_bytes} ") as stamp:
                if stamp is not None:
                    bound = _bound(folder) if cache_bytes is None else cache_bytes
                    _update(store, folder, bound, workers, progress, check)
                _use(folder)
        except OSError as error:
            if isinstance(error, Missing):
                raise DatasetError(str(error)) from None
            raise DatasetError(fault_of_disk(error, None, cache)) from None
    except DatasetError as error:
        raise DatasetError(f"{setting}={where}: {error}") from None
    above, _, name = where.rpartition("/")
    pattern = "*" in name and "*" not in above
    return folder / FILES / name if pattern or (folder / FILES / name).is_file() else folder / FILES


def _bound(folder: Path) -> int:
    """`data.cache_bytes` of the last update."""
    try:
        return int((folder / BOUND).read_text())
    except (OSError, ValueError):
        return bytes_of(CACHE_BYTES)


def _by_headers(folder: Path) -> bool:
    """Whether images that the mirror does not keep were not all decoded."""
    try:
        return bool(json.loads((folder / APART).read_text()).get("check") == HEADERS)
    except (OSError, ValueError):
        return False


def mirror_folder(cache: Path, address: str) -> Path:
    name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in address.rpartition("/")[2])
    return cache.absolute() / "remote" / f"{name or 'root'}-{hashlib.sha256(os.fsencode(address)).hexdigest()[:12]}"


class _taken:
    """The exclusive lock on a mirror. Gives None if another process, for which this one waited, has just updated it in
    the same way: the ranks of a node start together. way: a text without a line's end."""

    def __init__(self, path: Path, way: str) -> None:
        self._path, self._way = path, way

    def __enter__(self) -> IO[str] | None:
        before = self._path.read_text() if self._path.exists() else ""
        self._file = lock(self._path)
        now = self._path.read_text()
        return None if now != before and now.startswith(self._way) else self._file

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self._file.truncate(0)
            self._file.write(self._way + uuid.uuid4().hex)
        self._file.close()


def _use(folder: Path) -> None:
    """Note that this process reads the mirror, so that no other one takes files away."""
    if folder not in _in_use:
        file = (folder / "in-use").open("a+")
        fcntl.flock(file, fcntl.LOCK_SH)
        _in_use[folder] = file


def _claim(folder: Path) -> IO[str]:
    """The right to replace files. Raises DatasetError while another process reads the mirror."""
    if folder in _in_use:
        _in_use.pop(folder).close()
    try:
        return lock(folder / "in-use", wait=False)
    except BlockingIOError:
        problem = f"another run reads {folder}; its objects have changed, or data.cache_bytes or data.check is another"
        raise DatasetError(f"{problem}; set another data.cache, or start when it is done") from None


# ------------------------------------------------------------------------------------------------- update


def _update(store: Store, folder: Path, cache_bytes: int, workers: int, progress: bool, check: str) -> None:
    index = Index(folder)
    with suppress(FileNotFoundError):
        shutil.rmtree(folder / PARTIAL)
    for name in (FILES, PARTIAL, PROBES):
        (folder / name).mkdir(exist_ok=True)
    listed = _listed(store)
    total = sum(item.size for item in listed.values())
    apart = total > cache_bytes
    _check_bound(listed, total, cache_bytes, apart)
    unchecked = _by_headers(folder)
    again = unchecked and check == DECODE  # what is kept without images was not decoded, and is to be
    kept = {
        name: held
        for name, held in index.held.items()
        if _is_held(folder, held, listed.get(name), apart) and (held.whole or not again)
    }
    wanted = [item for name, item in listed.items() if name not in kept]
    stale = [name for name in index.held if name not in kept]
    claim = _claim(folder) if stale or (folder / APART).exists() != apart else None
    try:
        for name in stale:
            (folder / FILES / name).unlink(missing_ok=True)
            probes_file(folder, name).unlink(missing_ok=True)
        write_atomically(folder / BOUND, str(cache_bytes))
        if apart:
            headers = (unchecked and not again) or (check == HEADERS and bool(wanted))
            facts = {"address": store.address, "cache_bytes": cache_bytes, "check": HEADERS if headers else DECODE}
            write_atomically(folder / APART, json.dumps(facts))
        else:
            (folder / APART).unlink(missing_ok=True)
            shutil.rmtree(folder / IMAGES, ignore_errors=True)
        # The addresses of the new list: signatures expire.
        index.keep({name: held._replace(item=listed[name]) for name, held in kept.items()})
        if wanted:
            _fetch(store, folder, index, wanted, apart, workers, progress, check)
    finally:
        if claim is not None:
            claim.close()


def _listed(store: Store) -> dict[str, RemoteObject]:
    items = store.list()
    if len(items) == 1 and items[0].name.endswith(".beton"):  # the table that conversion wrote for it
        address = items[0].address.removesuffix(".beton") + ".npz"
        with suppress(Missing, DatasetError):  # S3 refuses to say that an object is missing, where it may not be listed
            items.append(store.look_up(address, items[0].name.removesuffix(".beton") + ".npz"))
    if gone := next((item.name for item in items if item.tag == MISSING and shard_kind(item.name)), ""):
        raise DatasetError(f"{gone}: no such object on the server; put it there, or leave it out")
    listed = {item.name: item for item in items}
    if len(listed) < len(items):
        twice = next(item.name for item in items if listed[item.name] is not item)
        raise DatasetError(f"two objects are called {twice}; give them different names")
    above = next((name for name in listed if any(f"{part}" in listed for part in _folders(name))), None)
    if above is not None:
        raise DatasetError(f"{above}: one of its folders is an object too; rename that object")
    return listed


def _folders(name: str) -> list[str]:
    return [str(folder) for folder in Path(name).parents][:-1]


def _check_bound(listed: Mapping[str, RemoteObject], total: int, cache_bytes: int, apart: bool) -> None:
    """Raise DatasetError if objects that cannot be kept without their images are too large for the cache."""
    rest = sum(item.size for name, item in listed.items() if not comes_apart(name))
    if apart and rest > cache_bytes:
        size = f"{total / 1e9:.3g} GB, {rest / 1e9:.3g} of them without byte ranges of images"
        problem = f"{size}, and data.cache_bytes={cache_bytes}"
        advice = "raise it, or make tars of them (make convert), which are cached in part"
        raise DatasetError(f"{problem}; {advice}")


def _is_held(folder: Path, held: Held, item: RemoteObject | None, apart: bool) -> bool:
    """Whether the mirror has this object as it was listed, in the form that is wanted."""
    if item is None or (item.size, item.tag) != held.item[2:] or held.whole == (apart and comes_apart(item.name)):
        return False
    try:
        return (folder / FILES / item.name).stat().st_size == item.size
    except OSError:
        return False


def _fetch(
    store: Store,
    folder: Path,
    index: Index,
    wanted: list[RemoteObject],
    apart: bool,
    workers: int,
    progress: bool,
    check: str,
) -> None:
    whole = [item for item in wanted if not (apart and comes_apart(item.name))]
    shards = [item for item in wanted if apart and shard_kind(item.name)]
    images = [item for item in wanted if apart and has_extension(item.name)]
    _check_room(folder, sum(item.size for item in whole))
    total = sum(item.size for item in wanted)
    if progress:
        form = "kept without their images, which are fetched as they are needed" if apart else "kept"
        bound = _bound(folder)
        limit = "" if bound == UNBOUNDED else f" (data.cache_bytes={bound / 1e9:.3g}GB)"
        what = f"{len(wanted):,} objects of {total / 1e9:.3g} GB"
        note(f"{store.address}: {what} are fetched to {folder} and {form}{limit}")

    def put(item: RemoteObject, file: Path, digest: str) -> None:
        _into_place(folder, item, file)
        index.add(Held(item, digest, True))

    skeleton = folder / PARTIAL / "skeleton"

    def put_known(item: RemoteObject, known: Known) -> None:
        save_probes(probes_file(folder, item.name), known.probes)
        with skeleton.open("ab") as file:
            os.ftruncate(file.fileno(), item.size)
        _into_place(folder, item, skeleton)
        index.add(Held(item, known.sha256, False))
        bar.update(item.size)

    def put_apart(item: RemoteObject, file: Path, digest: str) -> None:
        try:
            probes = take_apart(file, item.name, (folder / FILES / item.name).parent, skeleton, workers)
        except DatasetError as error:
            raise DatasetError(f"{item.name}: {str(error).partition(': ')[2] or error}") from None
        save_probes(probes_file(folder, item.name), probes)
        file.unlink()
        _into_place(folder, item, skeleton)
        index.add(Held(item, digest, False))

    def put_heads(item: RemoteObject, file: Path, probes: ShardProbes) -> None:
        save_probes(probes_file(folder, item.name), probes)
        _into_place(folder, item, file)
        index.add(Held(item, "", False))
        bar.update(item.size)

    def put_image_heads(items: list[RemoteObject]) -> None:
        for item, file, image in image_heads(store, items, folder / PARTIAL):
            _into_place(folder, item, file)
            index.add(Held(item, "", False, image))
            bar.update(item.size)

    with progress_bar(total, f"fetching {store.address}", "B", progress) as bar:
        fetch(store, whole, folder / PARTIAL, put, bar.update)
        tars = known_tars(folder / FILES, shards)
        unknown = []
        for item in shards:  # one at a time: a shard is all that is on the disk beyond data.cache_bytes
            known = tars.get(item.name)
            if shard_kind(item.name) == "beton":
                known = known_beton(store, item, folder / FILES, skeleton)
            if known is not None:
                put_known(item, known)
            elif check == HEADERS:
                unknown.append(item)
            else:
                _check_room(folder, item.size)
                fetch(store, [item], folder / PARTIAL, put_apart, bar.update)
        shard_heads(store, unknown, folder / PARTIAL, folder / FILES, put_heads)
        for some in _groups(images):
            if check == HEADERS:
                put_image_heads(some)
                continue
            _check_room(folder, GROUP)
            _fetch_images(store, folder, index, some, workers, bar.update)


def _groups(items: list[RemoteObject]) -> Iterator[list[RemoteObject]]:
    """The items in their order, up to GROUP bytes and IMAGES_OF_GROUP at once."""
    group: list[RemoteObject] = []
    size = 0
    for item in items:
        if group and (len(group) == IMAGES_OF_GROUP or size + item.size > GROUP):
            yield group
            group, size = [], 0
        group.append(item)
        size += item.size
    if group:
        yield group


def _fetch_images(
    store: Store, folder: Path, index: Index, items: list[RemoteObject], workers: int, count: Callable[[int], Any]
) -> None:
    """Fetch objects that are images, and keep what a scan finds out about each."""
    fetched: list[tuple[RemoteObject, Path, str]] = []
    fetch(store, items, folder / PARTIAL, lambda *one: fetched.append(one), count)
    found = images_apart([file for _, file, _ in fetched], workers)
    for (item, file, digest), image in zip(fetched, found, strict=True):
        _into_place(folder, item, file)
        index.add(Held(item, digest, False, image))


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        size, unit = (1e9, "GB") if needed >= 1e8 else (1e6, "MB")
        problem = f"{needed / size:.3g} {unit} are to be fetched, and {folder} has {free / size:.3g} {unit} of room"
        raise DatasetError(f"{problem}; make room, or set another data.cache or a lower data.cache_bytes")


def _into_place(folder: Path, item: RemoteObject, file: Path) -> None:
    """Give a complete file its name. Its time is a function of the tag, so that a table made of these bytes fits when
    the mirror was deleted and fetched again."""
    place = folder / FILES / item.name
    place.parent.mkdir(parents=True, exist_ok=True)
    time = 1_000_000_000 * 10**9 + zlib.crc32(item.tag.encode())
    os.utime(file, ns=(time, time))
    os.replace(file, place)

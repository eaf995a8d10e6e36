"""The loader: combines order, draw and backend, and yields the batches of one epoch at a time."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from pipeline.backends.dali import DaliBackend
from pipeline.backends.ffcv import FfcvBackend
from pipeline.backends.torchvision import TorchvisionBackend
from pipeline.batch import Batch, DecodeFailure, DrawRows, Request
from pipeline.crops import Crops, native_backend, native_backends
from pipeline.custom import changed, custom_changes, unnormalized
from pipeline.dataset.channels.format import COLOR, PixelFormat
from pipeline.dataset.reader import Reader
from pipeline.dataset.table import DatasetError, SampleTable
from pipeline.draw import center, draw
from pipeline.ledger import AddUp, Ledger
from pipeline.mixing.mixture import REPEAT, ROW, Mixture, draw_repeats, source_of
from pipeline.order import Position, order, rank_rows, steps_per_epoch
from pipeline.priority import NICE
from pipeline.remote.plan import Plan, Step
from pipeline.requests import Feed


class Backend(Protocol):
    """Executes draws: yields each request with its crops, in the order of the requests."""

    def stream(self, requests: Iterator[Request]) -> Iterator[tuple[Request, list[torch.Tensor]]]: ...

    def decodes(self, encoded: np.ndarray, most: int) -> bool: ...

    def close(self) -> None: ...


BACKENDS: dict[str, Callable[..., Backend]] = {
    "dali": DaliBackend,
    "ffcv": FfcvBackend,
    "torchvision": TorchvisionBackend,
}
READY = 1  # finished batches that wait for the training loop


def make_backend(
    name: str,
    crops: Crops,
    batch_size: int,
    threads: int,
    device_id: int | None,
    dtype: torch.dtype | None = None,
    hw_decoder_load: float | None = None,
    pixels: PixelFormat = COLOR,
    nice: int = 0,
) -> Backend:
    """A backend by its name in BACKENDS, for images of this format. nice: of the threads that only compute; all of
    those of `torchvision` hold Python's lock at times."""
    options: dict[str, dict[str, Any]] = {
        "dali": {"nice": nice, "hw_decoder_load": hw_decoder_load, "pixels": pixels},
        "ffcv": {"nice": nice, "pixels": pixels},
    }
    return BACKENDS[name](crops, batch_size, threads, device_id, dtype, **options.get(name, {}))


def require_native(backend: str, table: SampleTable) -> None:
    """Raise ValueError, one line, for a backend that does not make crops of the table's images."""
    if table.pixels.native and backend not in native_backends(table.pixels.is_color):
        able = f"pipeline.backend={native_backend()} makes crops of them"
        raise ValueError(f"pipeline.backend={backend}: the images have {table.pixels}; {able}")


class Loader:
    """This rank's batches of the training set: a seed gives the same rows and crops for any backend and world size.

    `for batch in loader` runs to the end of the current epoch; the next `for` runs the next epoch. `position` counts
    global samples and moves with each batch, so `state_dict()` right after a step is the state to resume from. dtype:
    of the crops; None is float32 on a CPU and float16 on a GPU. pinned_for: the GPU that crops made on the CPU go to;
    they are in pinned memory, so that the copy does not make the training loop wait. hw_decoder_load: see
    `DaliBackend`; the others have no such engine. neighbors: see `order`. mixture: how often each row comes in an
    epoch; None: once. ends_wait: asked while no batch is ready; if it says so, a DatasetError ends the wait. Raises
    ValueError if the global batch does not split over the ranks or is larger than the dataset, and for images that the
    backend does not take.
    """

    def __init__(
        self,
        table: SampleTable,
        crops: Crops,
        *,
        backend: str,
        seed: int,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 1,
        device_id: int | None = None,
        dtype: torch.dtype | None = None,
        max_bad_fraction: float = 0.01,
        pinned_for: int | None = None,
        hw_decoder_load: float | None = None,
        neighbors: int = 1,
        mixture: Mixture | None = None,
        ends_wait: Callable[[], bool] = bool,
    ):
        require_native(backend, table)
        self.feed = Feed(table, Reader(table), max_bad_fraction)
        self.threads, self.dtype = threads, dtype
        self.seed, self.neighbors = seed, neighbors
        self.global_batch = global_batch
        self.rank, self.world_size = rank, world_size
        self.position, self.mixture, self.ends_wait = Position(), mixture, ends_wait
        self.ledger = Ledger()
        if global_batch % world_size:
            raise ValueError(f"batch_size={global_batch} does not split evenly over {world_size} processes")
        if len(self) < 1:
            raise ValueError(f"batch_size={global_batch} is more than the {len(self.feed.usable)} usable images")
        self._producer: _Producer | None = None
        self.backend: Backend | None = None
        self.use(backend, crops, device_id, pinned_for, hw_decoder_load)

    def use(
        self,
        backend: str,
        crops: Crops,
        device_id: int | None,
        pinned_for: int | None,
        hw_decoder_load: float | None,
    ) -> None:
        """Make the crops from `position` on by this backend: see the arguments of `Loader`."""
        self.close()
        self.crops, self.pinned_for = crops, pinned_for
        self.device_id = device_id if device_id is not None else pinned_for
        self.device = torch.device("cpu" if self.device_id is None else f"cuda:{self.device_id}")
        self.customs = custom_changes(crops, self.device)
        size = self.global_batch // self.world_size
        self._new_backend = partial(
            make_backend,
            backend,
            unnormalized(crops) if self.customs else crops,
            size,
            self.threads,
            device_id,
            torch.float32 if self.customs else self.dtype,
            hw_decoder_load,
            self.feed.table.pixels,
            nice=NICE if self.device_id is not None else 0,
        )
        self.backend = self._new_backend()

    def __len__(self) -> int:
        """Steps per epoch."""
        return steps_per_epoch(len(self.feed.usable), self.global_batch)

    def __iter__(self) -> Iterator[Batch]:
        if self._producer is None:
            self.backend = self.backend or self._new_backend()
            batches = execute(self.backend, self.feed, self._requests())
            if self.customs:
                batches = self._changed(batches)
            elif self.pinned_for is not None:
                batches = pinned(batches)
            self._producer = _Producer(batches, self.device_id)
        epoch = self.position.epoch
        while self.position.samples + self.global_batch <= len(self.feed.usable):
            yield self._take(epoch)  # bound to no name here, so that the caller alone keeps its memory alive
        self.position.epoch, self.position.samples = epoch + 1, 0

    def _take(self, epoch: int) -> Batch:
        assert self._producer is not None
        request, crops = self._producer.take(self.ends_wait)
        assert request.epoch == epoch
        self.position.samples = request.samples
        self.ledger.enter(request.rows)
        return Batch(crops, request.rows)

    def account(self, add_up: AddUp) -> None:
        """Check after an epoch that all ranks together drew every row of its whole batches once.

        To be called on all ranks at once; add_up: adds integers over the ranks. Raises RuntimeError if the rows differ.
        The ledger starts again from zero.
        """
        epoch = self.position.epoch - 1
        expected = Ledger()
        expected.enter(self._rows(epoch))
        drawn = self.ledger.total(add_up)
        self.ledger = Ledger()
        if drawn != expected:
            raise RuntimeError(
                f"epoch {epoch}: {drawn.count} rows were drawn, {expected.count} expected, or some rows were wrong"
            )

    def of_sources(self) -> dict[str, int]:
        """How many images of the last whole epoch were of each source, where there are several."""
        if not self.feed.table.sources:
            return {}
        sources = source_of(self.feed.table, self._rows(self.position.epoch - 1))
        counts = np.bincount(sources, minlength=len(self.feed.table.sources))
        return {f"images_{number}": count for number, count in enumerate(counts.tolist())}

    @property
    def bad(self) -> dict[str, str]:
        """Images that this rank could not read and has replaced: name -> reason."""
        return {self.feed.table.name(row): reason for row, reason in self.feed.bad.items()}

    def state_dict(self, add_up: AddUp) -> dict[str, int]:
        """Position and the sum of all ranks' ledgers, equal on every rank; to be called on all ranks at once."""
        total = self.ledger.total(add_up)
        return self.position.state_dict() | {"count": total.count, "checksum": total.checksum}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.close()
        self.position.load_state_dict(state)
        self.ledger = Ledger(state["count"], state["checksum"]) if self.rank == 0 else Ledger()

    def close(self) -> None:
        """End all threads and close all files. Iterating again continues from `position`."""
        self.feed.reader.cancel()
        if self._producer is not None:
            self._producer.close()
            self._producer = None
        if self.backend is not None:
            self.backend.close()
            self.backend = None
        self.feed.reader.close()

    def _requests(self) -> Iterator[Request]:
        """This rank's requests from `position` on, without end: the next epoch is prepared during the current one."""
        plan = Plan(self._order, self.global_batch, self.rank, self.world_size)
        for epoch, samples, rows in self.feed.reader.ahead(self._steps(), plan):
            draw_rows = partial(draw, self.crops, self.seed, epoch)
            if self.mixture is not None:
                draw_rows = partial(draw_repeats, self.crops, self.seed, epoch, rows >> REPEAT)
            yield self.feed.request(epoch, samples, rows & ROW, draw_rows)

    def _changed(self, batches: Iterator[tuple[Request, list[torch.Tensor]]]) -> Iterator[Any]:
        """The batches after the user's own changes, made on the GPU that the crops go to, if there is one."""
        before = self.global_batch - self.rank * (self.global_batch // self.world_size)
        dtype = self.dtype or (torch.float32 if self.device_id is None else torch.float16)
        return changed(batches, self.customs, self.crops, self.seed, before, self.device, dtype)

    def _steps(self) -> Iterator[Step]:
        samples = self.position.samples
        for epoch in itertools.count(self.position.epoch):
            permutation = np.empty(0)  # the last one's memory is free before the next one is made
            permutation = self._order(epoch)
            while samples + self.global_batch <= len(permutation):
                rows = rank_rows(permutation, samples, self.global_batch, self.rank, self.world_size)
                samples += self.global_batch
                yield Step(epoch, samples, rows)
            samples = 0

    def _rows(self, epoch: int) -> np.ndarray:
        """The rows of an epoch's whole batches."""
        rows = self._order(epoch)[: len(self) * self.global_batch]
        return rows if self.mixture is None else rows & ROW

    def _order(self, epoch: int) -> np.ndarray:
        rows = self.feed.usable if self.mixture is None else self.mixture.epoch(self.seed, epoch)
        return order(self.seed, epoch, rows, self.neighbors)


def evaluation_batches(
    table: SampleTable,
    rows: np.ndarray,
    crops: Crops,
    *,
    backend: str,
    batch_size: int,
    threads: int = 1,
    device_id: int | None = None,
    max_bad_fraction: float = 0.01,
    hw_decoder_load: float | None = None,
    draw_rows: DrawRows | None = None,
) -> Generator[Batch, None, None]:
    """Crops of `rows` in order, the last batch possibly smaller. draw_rows: their draw; by default the central one,
    of `crops` from `Crops.for_evaluation`."""
    require_native(backend, table)
    feed = Feed(table, Reader(table), max_bad_fraction)
    executor = make_backend(
        backend, crops, batch_size, threads, device_id, hw_decoder_load=hw_decoder_load, pixels=table.pixels
    )
    steps = (Step(0, start, rows[start : start + batch_size]) for start in range(0, len(rows), batch_size))
    requests = (
        feed.request(0, step.samples, step.rows, draw_rows or partial(center, crops))
        for step in feed.reader.ahead(steps)
    )
    producer = _Producer(execute(executor, feed, requests), device_id)
    try:
        for _ in range(0, len(rows), batch_size):
            request, groups = producer.take()
            yield Batch(groups, request.rows)
    finally:
        feed.reader.cancel()
        producer.close()
        executor.close()
        feed.reader.close()


def execute(backend: Backend, feed: Feed, requests: Iterator[Request]) -> Iterator[tuple[Request, list[torch.Tensor]]]:
    """Crops of all requests, in order. If the backend cannot decode an image, its request is repaired and repeated."""
    while True:
        try:
            yield from backend.stream(requests)
            return
        except DecodeFailure as failure:
            repaired = [feed.repair(request, backend.decodes) for request in failure.requests]
            requests = itertools.chain(repaired, requests)


def pinned(batches: Iterator[tuple[Request, list[torch.Tensor]]]) -> Iterator[tuple[Request, list[torch.Tensor]]]:
    """The same with crops in pinned memory of the current GPU. torch reuses that memory only after its copies are
    done."""
    for request, crops in batches:
        yield request, [crop.pin_memory() for crop in crops]


class _Producer:
    """Runs an iterator in a thread, `READY` items ahead, and passes on its items or its exception; DatasetError where
    the caller no longer waits for one.

    device_id: the GPU that becomes the thread's current one. A thread begins on GPU 0, and pinned memory or a tensor
    without a device would make a context there: some hundred MB of GPU 0 for every process of the machine.
    """

    def __init__(self, items: Iterable[Any], device_id: int | None = None):
        self._device_id = device_id
        self._ready: queue.Queue[Any] = queue.Queue(maxsize=READY)
        self._stop = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(iter(items),), name="loader", daemon=True)
        self._thread.start()

    def take(self, ends_wait: Callable[[], bool] = bool) -> Any:
        while self._failed is None:
            try:
                item = self._ready.get(timeout=0.5)
            except queue.Empty:
                if ends_wait():
                    raise DatasetError("a stop signal came before the next batch") from None
                continue
            if not isinstance(item, BaseException):
                return item
            self._failed = item
        raise self._failed  # on every call: the thread has ended

    def close(self) -> None:
        self._stop.set()
        while self._thread.is_alive():  # makes room in the queue for a thread that waits to put an item
            try:
                self._ready.get(timeout=0.05)
            except queue.Empty:
                continue

    def _run(self, items: Iterator[Any]) -> None:
        try:
            if self._device_id is not None:
                torch.cuda.set_device(self._device_id)
            for item in items:
                self._put(item)
                del item  # this thread must not keep its memory alive
                if self._stop.is_set():
                    return
            self._put(RuntimeError("the loader ran out of batches"))
        except BaseException as error:  # passed to the training loop, which raises it
            self._put(error)

    def _put(self, item: Any) -> None:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

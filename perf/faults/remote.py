"""Faults of images on a web server: it fails, loses or replaces a shard, the disk that keeps images is full, what it
keeps is damaged, and kills and signals come while shards are fetched."""

from __future__ import annotations

import atexit
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from perf.faults.damage import EMPTY, FLIPPED, HALF, REMOVED, damaged, keep
from perf.faults.disks import FULL, READ_ONLY, at_point, fill, protect
from perf.faults.fault import ENDED, SAME, Fault, Inject, broken
from perf.faults.kills import DONE, EARLY, LOSS, killed, sent
from perf.faults.place import Ended, Place, Start, losses
from perf.faults.programs import Program
from perf.remote.server import ObjectServer, serving

KIND = "images on a web server"
SHARDS = "packed/shards"
KEPT = "data.cache_bytes=10KB"  # a third of the images of a shard; the others are fetched when they are needed
FETCHING, KEEPING = "pipeline.remote.mirror:_into_place", "pipeline.remote.records:Records.offer"


@cache
def server(folder: Path) -> ObjectServer:
    """The web server of a place's folder, until the campaign ends: its address is the same for all faults."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(serving(folder))


def _run_on_server(place: Place) -> list[str]:
    address = server(place.folder / SHARDS).address
    return place.train(f"data.path={address}/shards-{{000000..000002}}.tar", KEPT)


REMOTE = Program("train.py on a web server", _run_on_server, lambda place: losses(place.run), "packed")


def at_server(act: Callable[[Place, ObjectServer], None]) -> Inject:
    """An injection: `act` spoils the server at a step; the repair makes it whole again."""

    def spoil(place: Place, started: Start) -> None:
        state = server(place.folder / SHARDS)
        place.repairs.callback(state.faults.clear)
        place.repairs.callback(state.gone.clear)
        act(place, state)

    return broken(LOSS, 5, spoil)


def fails_for(seconds: float, fault: str) -> Inject:
    """Every answer is this fault, for so long."""

    def inject(place: Place, program: Program) -> Ended:
        state = server(place.folder / SHARDS)
        started = place.stop_at(program.arguments(place), LOSS, 5)
        state.faults += [fault] * 100_000
        started.go()
        time.sleep(seconds)
        state.faults.clear()
        return started.end()

    return inject


def some_answers(fault: str) -> Inject:
    """Each third answer is this fault, from the start to the end of the run."""

    def inject(place: Place, program: Program) -> Ended:
        state = server(place.folder / SHARDS)
        state.faults += ["", "", fault] * 100_000
        place.repairs.callback(state.faults.clear)
        return place.start(program.arguments(place)).end()

    return inject


def flips(place: Place, state: ObjectServer) -> None:
    """One in twenty of its answers is wrong in a byte. (Of the first ones nothing could tell it: HTTP has no sums.)"""
    state.faults += (["flipped"] + [""] * 19) * 100_000


def loses(place: Place, state: ObjectServer) -> None:
    """One of its shards is gone."""
    state.gone.add("shards-000001.tar")


def replaces(place: Place, state: ObjectServer) -> None:
    """Another file has the name of one of its shards."""
    shard = place.folder / SHARDS / "shards-000001.tar"
    keep(place, shard)
    shard.write_bytes(shard.read_bytes()[::-1])


def fetched(pattern: str, way: str) -> Inject:
    """The run is killed after a few steps; what it has fetched is then damaged."""
    spoiled = damaged(pattern, way, every=True)

    def inject(place: Place, program: Program) -> Ended:
        place.stop_at(program.arguments(place), LOSS, 6).kill()
        return spoiled(place, program)

    return inject


def faults() -> list[Fault]:
    changed = "swave: .*the object changed while it was in use"
    not_kept = "{}; no more images are kept"
    images, skeletons = "tables/remote/*/images/*/*/*", "tables/remote/*/files/*.tar"

    def row(what: str, inject: Inject, code: int, says: str, then: str = SAME, needs: str = "") -> Fault:
        return Fault(KIND, what, inject, code, says, then, begins="packed", program=REMOTE, needs=needs)

    return [
        row("it fails for five seconds", fails_for(5, "503"), 0, DONE, ENDED),
        row("it ends all connections for five seconds", fails_for(5, "reset"), 0, DONE, ENDED),
        *(row(f"each third answer is {word}", some_answers(fault), 0, DONE, ENDED)
          for word, fault in (("an error", "503"), ("cut in half", "cut"))),
        row("one in twenty answers is wrong in a byte", at_server(flips), 0, DONE, ENDED),
        row("a shard is gone", at_server(loses), 1, "swave: .* images could not be read"),
        row("a shard is replaced", at_server(replaces), 1, changed),
        row("the disk of the cache is full before the first shard", at_point(fill, "tables", FETCHING, 1), 2,
            "swave: data.path=.* of room; make room", needs="root"),
        row("the disk of the cache is read-only before the first shard", at_point(protect, "tables", FETCHING, 1), 2,
            f"swave: data.path=.*cannot write to the cache .*{READ_ONLY}", needs="root"),
        *(row(f"the disk of the cache is {word} when an image is kept", at_point(spoil, "tables", KEEPING, 3), 0,
              not_kept.format(problem), ENDED, "root")
          for word, spoil, problem in (("full", fill, FULL), ("read-only", protect, READ_ONLY))),
        *(row(f"images that are kept: {way}", fetched(images, way), 0, DONE, ENDED)
          for way in (HALF, EMPTY, FLIPPED, REMOVED)),
        *(row(f"shards without their images: {way}", fetched(skeletons, way), 0, DONE, ENDED)
          for way in (HALF, EMPTY, REMOVED)),
        row("kill -9 while shards are fetched", killed(FETCHING, 2), -signal.SIGKILL, ""),
        row("SIGTERM while shards are fetched", broken(FETCHING, 2, sent(signal.SIGTERM)), 0, EARLY),
    ]  # fmt: skip

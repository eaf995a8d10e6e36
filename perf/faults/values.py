"""Bad images, bad numbers, two programs at once, and clocks that jump."""

from __future__ import annotations

import os
from functools import partial

import numpy as np

from perf.faults import points
from perf.faults.damage import keep
from perf.faults.fault import ENDED, SAME, Fault, Inject
from perf.faults.kills import LOSS
from perf.faults.place import Ended, Place
from perf.faults.programs import CONVERT, TRAIN, Program

BATCH, SEED = 8, 5  # of the recipe
BAD, TWICE, CLOCK = "bad images", "two at once", "clocks"
DAY = 86_400


def bad_image(position: int, data: bytes, settings: tuple[str, ...] = ()) -> Inject:
    """The image at a position of the third batch gets these bytes, with its old size and time: no scan can see it."""

    def inject(place: Place, program: Program) -> Ended:
        from pipeline.dataset.table import SampleTable
        from pipeline.order import order

        (file,) = (place.folder / "tables").glob("*.npz")
        table = SampleTable.load(file)
        row = int(order(SEED, 1, table.usable())[4 * BATCH + position])  # the next batch after step 13
        path = table.root / table.containers[table.container[row]]
        keep(place, path)
        before = path.stat()
        path.write_bytes((data * before.st_size)[: before.st_size])
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return place.start([*program.arguments(place), *settings]).end()

    return inject


def bad_number(value: float, gradient: float, call: int, rank: int = 0) -> Inject:
    def inject(place: Place, program: Program) -> Ended:
        prepare = partial(points.bad_loss, call, value, gradient, rank)
        return place.start(program.arguments(place), prepare).end()

    return inject


def second_start(point: str, call: int) -> Inject:
    """While a program waits at the point the same command is given again; the first one then goes on to its end."""

    def inject(place: Place, program: Program) -> Ended:
        started = place.stop_at(program.arguments(place), point, call)
        second = place.start(program.arguments(place)).end()
        started.go()
        first = started.end()
        return Ended(second.code if first.code == 0 else first.code, second.output + first.output)

    return inject


def clock_jump(days: int) -> Inject:
    """time.time() of the program jumps at the fifth step."""

    def inject(place: Place, program: Program) -> Ended:
        return place.start(program.arguments(place), partial(points.jump_clock, LOSS, 5, days * DAY)).end()

    return inject


def clock_back_between_scans(place: Place, program: Program) -> Ended:
    """A table made by a clock a day ahead; then an image changes."""
    for file in (place.folder / "tables").iterdir():
        status = file.stat()
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + DAY * 10**9))
    (lock,) = (place.folder / "tables").glob("*.lock")
    lock.write_text(str(lock.stat().st_mtime + DAY))
    extra = place.folder / "images" / "class0" / "new.png"
    extra.write_bytes(next(extra.parent.glob("*.png")).read_bytes())
    place.repairs.callback(extra.unlink)
    return place.start(program.arguments(place)).end()


def faults() -> list[Fault]:
    unreadable = "swave: 1 of .* images could not be read"
    rows = [
        Fault(BAD, f"zeros at position {position} of a batch", bad_image(position, b"\0"), 1, unreadable, SAME,
              begins="stopped", short=position == 3)
        for position in range(BATCH)
    ]  # fmt: skip
    junk = np.random.default_rng(3).bytes(1)
    not_finite = "swave: step .*: the loss is not finite on .* last good checkpoint: "
    rows += [
        Fault(BAD, "noise in place of an image", bad_image(0, junk), 1, unreadable, SAME, begins="stopped"),
        Fault(BAD, "one of two processes gets one", bad_image(5, b"\0"), 1, unreadable, SAME, 2, "stopped"),
        Fault("bad numbers", "an infinite loss", bad_number(np.inf, 1.0, 8), 1, not_finite, SAME),
        Fault("bad numbers", "a loss of NaN on one of two", bad_number(np.nan, 1.0, 8, 1), 1, not_finite, SAME, 2),
        Fault("bad numbers", "a gradient of NaN", bad_number(1.0, np.nan, 9), 1, not_finite, SAME),
        Fault("bad numbers", "a gradient of NaN right before a save", bad_number(1.0, np.nan, 8), 1, not_finite, SAME),
        Fault("bad numbers", "a gradient of NaN in the last step", bad_number(1.0, np.nan, 27), 1,
              "no checkpoint could be written .*not finite", SAME),
        Fault("bad numbers", "an infinite gradient on one of two", bad_number(1.0, np.inf, 9, 1), 1, not_finite,
              SAME, 2),
        Fault(TWICE, "two runs in one directory", second_start(LOSS, 6), 2,
              "swave: run.directory=.*another run is writing it", ENDED),
        Fault(TWICE, "two conversions to one target", second_start("pipeline.convert:make_part", 2), 2,
              "swave: OUT=.*another conversion is writing it", ENDED, program=CONVERT),
        Fault(CLOCK, "a day forward in a run", clock_jump(1), 0, "k-NN accuracy", ENDED),
        Fault(CLOCK, "a day back in a run", clock_jump(-1), 0, "k-NN accuracy", ENDED),
        Fault(CLOCK, "a day back after a scan, then another image", clock_back_between_scans, 2,
              "scanning again, the files changed", SAME, program=TRAIN, begins="stopped"),
    ]  # fmt: skip
    return rows

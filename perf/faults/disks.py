"""Full and read-only disks: small file systems of their own (tmpfs, needs root), filled or remounted at a point of the
program, at each directory that swave writes and at each kind of write."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from perf.faults.fault import ENDED, SAME, Fault, Inject
from perf.faults.place import Ended, Place
from perf.faults.programs import CONVERT, EXPORT, KNN, PARQUET, SHARDS, TRAIN, Program

SIZE = "48m"
FULL, READ_ONLY = "No space left on device", "Read-only file system"
SAVE, JOURNAL, CONVERSION = "training.checkpoint.save_load", "training.run_directory:Journal", "pipeline.convert"
NOT_SAVED = "no checkpoint could be written .*{}"
LINE = "swave: .*{}"
CACHE = "swave: data.path=.*cannot write its table to the cache .*{}"
UNPACKED = "cannot spool to .*{}"

# What is written, in which program, its directory in the place, the point just before, its call, and for a full and a
# read-only disk: exit code, what the user sees ({}: the system's message), what follows.
Outcome = tuple[int, str, str]
END_1: Outcome = (1, NOT_SAVED, SAME)
ROWS: Sequence[tuple[str, Program, str, str, int, Outcome, Outcome]] = (
    ("run.directory at the start", TRAIN, "run", f"{JOURNAL}.take", 1,
     (1, LINE, SAME), (2, "swave: run.directory=.*{}", SAME)),
    ("the run's config.yaml", TRAIN, "run", f"{JOURNAL}.open", 1, (1, LINE, SAME), (1, LINE, SAME)),
    ("the run's untrained.json", TRAIN, "run", f"{JOURNAL}.record", 1, (1, LINE, SAME), (1, LINE, SAME)),
    ("metrics.jsonl", TRAIN, "run", "model.objective:Objective.loss", 8, END_1, END_1),
    ("a checkpoint's folder", TRAIN, "run", f"{SAVE}:_fresh", 2, END_1, END_1),
    ("a rank's file of a checkpoint", TRAIN, "run", f"{SAVE}:save_file", 2, END_1, END_1),
    ("a checkpoint's manifest", TRAIN, "run", f"{SAVE}:_size", 3, END_1, END_1),
    ("the file `latest`", TRAIN, "run", f"{SAVE}:write_atomically", 2, END_1, END_1),
    ("the run's last checkpoint", TRAIN, "run", "training.run_state:RunState.save", 14, END_1, END_1),
    ("the run's summary.json", TRAIN, "run", f"{JOURNAL}.finish", 1, (1, LINE, SAME), (1, LINE, SAME)),
    ("the table in data.cache", TRAIN, "tables", "pipeline.dataset.open:scan_folder", 1,
     (2, CACHE, SAME), (2, CACHE, SAME)),
    ("a conversion's start", CONVERT, "out", f"{CONVERSION}:unfinished", 1,
     (2, "swave: OUT in .*; make room", SAME), (2, LINE, SAME)),
    ("a conversion's description", CONVERT, "out", f"{CONVERSION}:resume", 1, (2, LINE, SAME), (2, LINE, SAME)),
    ("a part of a .beton", CONVERT, "out", f"{CONVERSION}:make_part", 2, (2, LINE, SAME), (2, LINE, SAME)),
    ("the joined .beton", CONVERT, "out", f"{CONVERSION}:finish_beton", 1, (2, LINE, SAME), (2, LINE, SAME)),
    ("a shard", SHARDS, "out", f"{CONVERSION}:make_part", 2, (2, LINE, SAME), (2, LINE, SAME)),
    ("the shards' table", SHARDS, "out", f"{CONVERSION}:finish_shards", 1, (2, LINE, SAME), (2, LINE, SAME)),
    ("an unpacked Parquet file", PARQUET, "out", "pipeline.conversion.spool:_spool_one", 1,
     (2, UNPACKED, SAME), (2, UNPACKED, SAME)),
    ("the feature cache of an evaluation", KNN, "features", "evaluation.feature_cache:replacing", 1,
     (2, LINE, SAME), (2, LINE, SAME)),
    ("the folder of the feature cache", KNN, "features", "evaluation.feature_cache:_write_about", 1,
     (2, LINE, SAME), (2, LINE, SAME)),
    ("the --json of an evaluation", KNN, "out", "evaluation.command:report", 1, (2, LINE, SAME), (2, LINE, SAME)),
    ("an export", EXPORT, "out", "training.trained_network:read_trained", 1, (2, LINE, SAME), (2, LINE, SAME)),
    ("an export's last move", EXPORT, "out", "export.__main__:_put", 1, (0, "wrote", ENDED), (2, LINE, SAME)),
)  # fmt: skip


def mount(place: Place, path: Path, size: str = SIZE) -> None:
    """Put a file system of this size at `path`, with what is there; unmounted when the place is left."""
    kept = path.with_name(f"{path.name}.kept")
    path.mkdir(parents=True, exist_ok=True)
    shutil.copytree(path, kept, symlinks=True)
    call("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path))
    place.after.callback(call, "umount", "--lazy", str(path))
    shutil.copytree(kept, path, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(kept)


def fill(place: Place, path: Path) -> None:
    """Write until the disk is full; the repair deletes that file again."""
    filler = path / ".filler"
    place.repairs.callback(filler.unlink, missing_ok=True)
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def protect(place: Place, path: Path) -> None:
    """Make the disk read-only; the repair makes it writable again. Files that are open for writing go on."""
    subprocess.run(["mount", "-o", "bind", str(path), str(path)], check=True)
    place.after.callback(call, "umount", "--lazy", str(path))
    place.repairs.callback(call, "mount", "-o", "remount,bind,rw", str(path))
    call("mount", "-o", "remount,bind,ro", str(path))


def call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def at_point(spoil: Callable[[Place, Path], None], name: str, point: str, number: int) -> Inject:
    """An injection: the directory `name` is a small disk, and is spoiled at the point."""

    def inject(place: Place, program: Program) -> Ended:
        mount(place, place.folder / name)
        started = place.stop_at(program.arguments(place), point, number)
        spoil(place, place.folder / name)
        started.go()
        return started.end()

    return inject


def full_for_a_while(place: Place, program: Program) -> Ended:
    """The run's disk is full for one save, and has room again."""
    mount(place, place.run)
    started = place.stop_at(program.arguments(place), f"{SAVE}:save_file", 2, 3)
    fill(place, place.run)
    started.go()
    started.wait_until(lambda: "no checkpoint could be written" in started.output, "no save failed")
    started.wait_at(f"{SAVE}:save_file")
    place.repairs.close()
    started.go()
    return started.end()


def temporary_files(spoil: Callable[[Place, Path], None]) -> Inject:
    """An injection: the directory for temporary files is full or read-only from the start."""

    def inject(place: Place, program: Program) -> Ended:
        folder = place.folder / "temporary"
        mount(place, folder, "1m")
        spoil(place, folder)
        return place.start(program.arguments(place), variables={"TMPDIR": str(folder)}).end()

    return inject


def faults() -> list[Fault]:
    rows = []
    for what, program, name, point, number, when_full, when_read_only in ROWS:
        kinds = (("disk full", fill, FULL, when_full), ("disk read-only", protect, READ_ONLY, when_read_only))
        for kind, spoil, message, (code, says, then) in kinds:
            inject = at_point(spoil, name, point, number)
            rows.append(
                Fault(kind, what, inject, code, says.format(message), then, program=program, begins=program.begins,
                      needs="root")
            )  # fmt: skip
    rows += [
        Fault("disk full", "a checkpoint, and room again for the next one", full_for_a_while, 0,
              "training goes on", ENDED, needs="root", short=True),
        Fault("disk full", "TMPDIR from the start", temporary_files(fill), 0, "k-NN accuracy", ENDED, needs="root"),
        Fault("disk read-only", "TMPDIR from the start", temporary_files(protect), 0, "k-NN accuracy", ENDED,
              needs="root"),
    ]  # fmt: skip
    return rows

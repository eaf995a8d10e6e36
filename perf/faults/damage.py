"""Files that are cut in half, emptied, changed in one bit, removed, or swapped for another run's, between two starts:
checkpoints, tables, caches, records, packed images, and what a killed conversion left."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from perf.faults.fault import ENDED, SAME, UNSEEN, Fault, Inject
from perf.faults.place import Ended, Place
from perf.faults.programs import BETON, CONVERT, KNN, TAIL, TARS, TRAIN, Program

HALF, EMPTY, FLIPPED, REMOVED, SWAPPED = "half of it is there", "empty", "a bit flipped", "removed", "another run's"


def half(file: Path, other: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path, other: Path) -> None:
    file.write_bytes(b"")


def flipped(file: Path, other: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) * 2 // 5] ^= 0x10  # in a tar of the campaign, this is in an image
    file.write_bytes(data)


def removed(file: Path, other: Path) -> None:
    shutil.rmtree(file) if file.is_dir() else file.unlink()


def swapped(file: Path, other: Path) -> None:
    removed(file, other)
    shutil.copytree(other, file) if other.is_dir() else shutil.copy(other, file)


WAYS = {HALF: half, EMPTY: empty, FLIPPED: flipped, REMOVED: removed, SWAPPED: swapped}
CHECKPOINT, TABLE, RECORD, PACKED, CACHED = (
    "damaged checkpoint", "damaged table", "damaged record of a run", "damaged packed images", "damaged cache",
)  # fmt: skip
DONE, OLDER, AGAIN = r"k-NN accuracy", r"is damaged \(.*\); the one before it is used", r"scanning again"
ALL = tuple(WAYS)


def damaged(pattern: str, way: str, restore: bool = False, every: bool = False) -> Inject:
    """An injection: the newest file (`every`: all files) that the pattern finds is damaged, then the program runs.

    restore: the repair puts the undamaged files back.
    """

    def inject(place: Place, program: Program) -> Ended:
        files = sorted(place.folder.glob(pattern))
        for file in files if every else files[-1:]:
            if restore:
                keep(place, file)
            WAYS[way](file, place.other() / file.relative_to(place.folder))
        assert files, pattern
        return place.start(program.arguments(place)).end()

    return inject


def keep(place: Place, path: Path) -> None:
    """Let the repair put back what is at `path` now."""
    kept = place.folder / "kept" / path.relative_to(place.folder)
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(path, kept) if path.is_dir() else shutil.copy2(path, kept)

    def put_back() -> None:
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
        shutil.copytree(kept, path) if kept.is_dir() else shutil.copy2(kept, path)

    place.repairs.callback(put_back)


def no_whole_checkpoint(place: Place, program: Program) -> Ended:
    """Each checkpoint is damaged; the user then moves them away."""
    place.repairs.callback(shutil.rmtree, place.run / "checkpoints")
    return damaged("run/checkpoints/*/rank-*", FLIPPED, every=True)(place, program)


# Kind, pattern, snapshot, program, ways, exit code, what is seen, what follows, ranks.
ROWS: Sequence[tuple[str, str, str, Program, Sequence[str], int, str, str, int]] = (
    (CHECKPOINT, "run/checkpoints/*/rank-00000.safetensors", "stopped", TRAIN, ALL, 0, OLDER, ENDED, 1),
    (CHECKPOINT, "run/checkpoints/*/rank-00001.safetensors", "stopped", TRAIN, (FLIPPED, REMOVED), 0, OLDER, ENDED, 2),
    (CHECKPOINT, "run/checkpoints/*/state.json", "stopped", TRAIN, ALL, 0, OLDER, ENDED, 1),
    (CHECKPOINT, "run/checkpoints/*/manifest.json", "stopped", TRAIN, ALL, 0, OLDER, ENDED, 1),
    (CHECKPOINT, "run/checkpoints/latest", "stopped", TRAIN, ALL, 0, "resuming from .*step 12", ENDED, 1),
    (CHECKPOINT, "run/checkpoints/step-*", "stopped", TRAIN, (REMOVED,), 0, "resuming from .*step 10", ENDED, 1),
    (RECORD, "run/config.yaml", "stopped", TRAIN, ALL, 0, DONE, ENDED, 1),
    (RECORD, "run/metrics.jsonl", "stopped", TAIL, ALL, 0, DONE, ENDED, 1),
    (RECORD, "run/untrained.json", "stopped", TRAIN, (HALF, EMPTY, REMOVED), 0, DONE, ENDED, 1),
    (RECORD, "run/versions.json", "stopped", TRAIN, (HALF, REMOVED), 0, DONE, ENDED, 1),
    (RECORD, "run/tensorboard/events*", "stopped", TRAIN, (HALF, REMOVED), 0, DONE, ENDED, 1),
    (RECORD, "run/.lock", "stopped", TRAIN, (REMOVED,), 0, DONE, ENDED, 1),
    (RECORD, "run/summary.json", "done", TRAIN, (HALF, EMPTY, SWAPPED), 0, "is damaged", ENDED, 1),
    (RECORD, "run/summary.json", "done", TRAIN, (REMOVED,), 0, DONE, ENDED, 1),
    (RECORD, "run/config.yaml", "done", TRAIN, ALL, 0, "is done", ENDED, 1),
    (TABLE, "tables/*.npz", "stopped", TRAIN, (HALF, EMPTY), 0, AGAIN, ENDED, 1),
    (TABLE, "tables/*.npz", "stopped", TRAIN, (FLIPPED, REMOVED), 0, DONE, ENDED, 1),
    (TABLE, "tables/*.json", "stopped", TRAIN, (HALF, REMOVED), 0, DONE, ENDED, 1),
    (TABLE, "tables/*.lock", "stopped", TRAIN, (HALF, FLIPPED, REMOVED), 0, DONE, ENDED, 1),
    (PACKED, "packed/x.npz", "packed", BETON, (HALF, EMPTY, FLIPPED), 0, "scanning it instead", ENDED, 1),
    (PACKED, "packed/x.npz", "packed", BETON, (REMOVED,), 0, DONE, ENDED, 1),
    (PACKED, "packed/x.beton", "packed", BETON, (HALF, EMPTY, REMOVED), 2, "swave: data.path=", SAME, 1),
    (PACKED, "packed/x.beton", "packed", BETON, (FLIPPED,), 0, DONE, UNSEEN, 1),
    (PACKED, "packed/shards/*.tar", "packed", TARS, (HALF, EMPTY, REMOVED), 2, "swave: data.path=", SAME, 1),
    (PACKED, "packed/shards/*.tar", "packed", TARS, (FLIPPED,), 1, "swave: .* images could not be read", SAME, 1),
    (PACKED, "packed/shards/table.npz", "packed", TARS, (HALF, EMPTY, FLIPPED), 2, "damaged sample table", SAME, 1),
    (CACHED, "features/*/part-*", "scored", KNN, (HALF, EMPTY, FLIPPED, REMOVED), 0, "k-NN|knn", ENDED, 1),
    (CACHED, "features/*/about.json", "scored", KNN, (HALF, REMOVED), 0, "k-NN|knn", ENDED, 1),
    (CACHED, "out/.x.beton.partial/parts/*.npz", "converting", CONVERT, (HALF, FLIPPED, REMOVED), 0, "", ENDED, 1),
    (CACHED, "out/.x.beton.partial/data/*", "converting", CONVERT, (HALF, FLIPPED, REMOVED), 0, "", ENDED, 1),
    (CACHED, "out/.x.beton.partial/run.json", "converting", CONVERT, (HALF, EMPTY, FLIPPED, REMOVED), 0, "", ENDED, 1),
)  # fmt: skip


def faults() -> list[Fault]:
    rows = []
    for kind, pattern, begins, program, ways, code, says, then, ranks in ROWS:
        for way in ways:
            inject = damaged(pattern, way, restore=then in (SAME, UNSEEN))
            what = f"{pattern.replace('*', '').strip('/')} {'of a finished run ' * (begins == 'done')}({way})"
            short = pattern.endswith("state.json") and way == FLIPPED
            rows.append(Fault(kind, what, inject, code, says, then, ranks, begins, program, short=short))
    other = damaged("run/checkpoints/step-*", SWAPPED, restore=True)
    rows += [
        Fault(CHECKPOINT, "the newest one is another run's", other, 2,
              "holds a run with other settings", SAME, begins="stopped"),
        Fault(CHECKPOINT, "a bit flipped in each", no_whole_checkpoint, 2,
              "no checkpoint is whole; move the folder away", SAME, begins="stopped"),
    ]  # fmt: skip
    return rows

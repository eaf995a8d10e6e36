"""Kill runs at random times: do they end with exactly the weights of a run that was never killed?

    python -m perf.kill_check [--kills 200] [--json perf/results/kill_check.json]        make kill-check KILLS=200
    python -m perf.kill_check --remote [--kills 200] [--add]

A tiny network trains by `train.py` on 64 images, with a checkpoint every second step. For each number of processes and
ZeRO stage one run is not killed. Other runs get SIGKILL at a random moment (start, step, save or end): first a random
rank, up to 50 ms later the others. The same command resumes the run until the next kill or the end; then a new run
begins. Masters, optimizer state, buffers and queue of the last checkpoints are compared. Per case:

    kills           SIGKILLs, each to all processes of a run
    runs            runs that reached their end
    identical       whether all of these ended with the same bits
    steps_lost      the most steps that a kill cost: logged before it and repeated after it
    unusable        kills after which the run did not resume

--remote: the images of the runs that are killed are in tars on a web server of this machine, of which three answers in
a hundred are faults. The cache holds a tenth of the images, and each run begins with an empty one. The runs that are
not killed read the same tars from the disk.

--add: go on with the counts of the file, up to --kills. The file is written after each run, so that the same command
goes on after a stop.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from common.cli import EXIT_MISTAKE, Parser, print_error
from common.files import write_atomically
from common.progress import progress_bar
from config.recipe import ROOT
from perf.forked import fork
from perf.machine import machine
from perf.remote.server import serving
from perf.zero_check import show

CASES = ((1, 0), (2, 0), (2, 1), (2, 2), (2, 3), (4, 0), (4, 2), (4, 3))  # ranks, stage
INTERVAL, EPOCHS, BATCH, IMAGES = 2, 3, 8, 64
FAULTS = ("503", "reset", "cut")  # of the server
CACHE = "data.cache_bytes=10KB"  # a tenth of the images
TIME_LIMIT = 1200  # seconds for a run that is not killed any more, on a busy machine
RECIPE = f"""
run: {{epochs: {EPOCHS}, batch_size: {BATCH}, log_every: 1, seed: 5}}
checkpoint: {{every: {INTERVAL} steps}}
crops:
  global: {{count: 2, size: 16, scale: [0.3, 1.0]}}
  local: {{count: 2, size: 8, scale: [0.1, 0.4]}}
pipeline: {{backend: dali}}
model:
  backbone: resnet
  options: {{block: basic, layers: [1, 1], base_width: 8, stem: small, stem_stride: 2}}
  hidden_dim: 16
  embedding_dim: 8
  prototypes: 12
swav: {{freeze_prototypes: 4, queue: {{length: 16, start_epoch: 0}}}}
optimizer: {{base_lr: 0.5, warmup_epochs: 0}}
evaluation: {{size: 16, batch_size: 32, watched: 0}}
"""


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.kill_check", __doc__)
    parser.add_argument("--kills", type=int, default=200, help="in all cases together (default 200)")
    parser.add_argument("--seed", type=int, default=1, help="of the random moments (default 1)")
    parser.add_argument("--remote", action="store_true", help="images on a web server, and a cache of a tenth of them")
    parser.add_argument("--add", action="store_true", help="go on with the counts of the file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: perf/results/kill_check.json")
    options = parser.parse_args(arguments)
    name = "kill_check_remote.json" if options.remote else "kill_check.json"
    options.json = options.json or ROOT / "perf" / "results" / name
    if options.kills < len(CASES):
        print_error(f"--kills={options.kills}: expected {len(CASES)} or more, one for each case")
        return EXIT_MISTAKE
    if not options.json.absolute().parent.is_dir():
        print_error(f"--json={options.json}: there is no folder {options.json.absolute().parent}")
        return EXIT_MISTAKE
    rows = json.loads(options.json.read_text())["rows"] if options.add and options.json.exists() else []

    def save(rows: list[dict[str, Any]]) -> None:
        report = {"kills": sum(row["kills"] for row in rows), "seed": options.seed, "rows": rows, "machine": machine()}
        write_atomically(options.json, json.dumps(report, indent=1) + "\n")

    rows = check(CASES, options.kills, options.seed, remote=options.remote, rows=rows, save=save)
    save(rows)
    show(rows)
    print(f"{options.json}: written")
    return int(any(not row["holds"] for row in rows))


@dataclass
class Counts:
    """What happened to the runs of a case; see the top of this file."""

    kills: int = 0
    runs: int = 0
    starts: int = 0
    steps_lost: int = 0
    unusable: int = 0
    different: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, row: dict[str, Any]) -> Counts:
        """The counts of a row; of {} zeros."""
        counts = cls(**{name: row.get(name, 0) for name in ("kills", "runs", "starts", "steps_lost", "unusable")})
        counts.different += [] if row.get("identical", True) else ["an earlier run"]
        return counts

    def row(self, ranks: int, stage: int) -> dict[str, Any]:
        row = {"ranks": ranks, "stage": stage, "kills": self.kills, "runs": self.runs, "starts": self.starts}
        row |= {"identical": not self.different, "steps_lost": self.steps_lost, "unusable": self.unusable}
        holds = row["identical"] and self.runs and not self.unusable and self.steps_lost <= INTERVAL
        return row | {"holds": bool(holds)}


def check(
    cases: Any,
    kills: int,
    seed: int,
    progress: bool = True,
    remote: bool = False,
    rows: Sequence[dict[str, Any]] = (),
    save: Callable[[list[dict[str, Any]]], Any] = len,
) -> list[dict[str, Any]]:
    """A row for each of `cases`, (ranks, stage); each case gets an equal share of the kills. rows: of an earlier call,
    whose counts go on; save: called with all rows after each run."""
    found = {(row["ranks"], row["stage"]): row for row in rows}
    before = sum(row["kills"] for row in rows)
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        bar = stack.enter_context(progress_bar(kills, "kills", "kill", progress))
        bar.update(before)
        recipe, address = make_recipe(Path(scratch)), ""
        if remote:
            recipe = pack_images(recipe)
            server = stack.enter_context(serving(Path(scratch) / "tars"))
            server.faults += random.Random(seed + before).choices(("", *FAULTS), (97, 1, 1, 1), k=1_000_000)
            address = f"{server.address}/list.txt"
        for index, (ranks, stage) in enumerate(cases):
            share = kills // len(cases) + (index < kills % len(cases))
            counts = Counts.of(found.get((ranks, stage), {}))
            if counts.kills >= share:
                continue
            folder = Path(scratch) / f"{ranks}-{stage}"
            chance = random.Random(f"{seed} {ranks} {stage} {counts.kills}")
            for _ in kill_runs(ranks, stage, recipe, folder, share, chance, bar.update, address, counts):
                found[ranks, stage] = counts.row(ranks, stage)
                save([found[case] for case in cases if case in found])
            shutil.rmtree(folder)
    return [found[case] for case in cases]


def make_recipe(folder: Path) -> Path:
    """Write 64 training images of noise in two classes and a recipe for them; returns its path."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(1)
    for index in range(IMAGES + 8):  # a tenth becomes the test set
        path = folder / "images" / f"class{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((noise.integers(0, 128, (20, 20, 3)) + 100 * (index % 2)).astype(np.uint8)).save(path)
    data = {"path": str(folder / "images"), "cache": str(folder / "tables")}
    (folder / "tiny.yaml").write_text(RECIPE + f"data: {json.dumps(data)}\n")
    return folder / "tiny.yaml"


def pack_images(recipe: Path) -> Path:
    """Pack the images of a recipe of `make_recipe` into tars, with a list of them; returns a recipe for the tars."""
    from pipeline.dataset.shards import Record, pack

    folder = recipe.parent
    files = sorted((folder / "images").rglob("*.png"), key=lambda file: int(file.stem))
    records = (Record(file.stem, file.read_bytes(), "png", int(file.parent.name[-1])) for file in files)
    pack(records, folder / "tars", "shard", max_count=12)
    names = sorted(file.name for file in (folder / "tars").glob("*.tar"))
    (folder / "tars" / "list.txt").write_text("\n".join(names))
    data = {"path": str(folder / "tars" / "*.tar"), "cache": str(folder / "tables")}
    (folder / "tars.yaml").write_text(RECIPE + f"data: {json.dumps(data)}\n")
    return folder / "tars.yaml"


# ---------------------------------------------------------------------------------------------- runs
def kill_runs(
    ranks: int,
    stage: int,
    recipe: Path,
    folder: Path,
    kills: int,
    chance: random.Random,
    done: Any,
    address: str,
    counts: Counts,
) -> Iterator[None]:
    """Runs of a case, until they were killed `kills` times and the last one has ended; yields after each run, when
    `counts` is up to date. done: called after each kill. address: of the images of these runs, '' if they are those of
    the recipe."""

    def start(directory: Path) -> Run:
        cache = f"data.cache={directory / 'cache'}"
        return Run(ranks, stage, recipe, directory, [f"data.path={address}", cache, CACHE] if address else [])

    Run(ranks, stage, recipe, folder / "alone").end()  # also scans the images, for all later runs on the disk
    begun = time.monotonic()
    start(folder / "timed").end()
    duration = time.monotonic() - begun
    while counts.kills < kills:
        directory = folder / f"run{counts.runs}"
        try:
            finished = False
            while not finished:
                logged = last_step(directory)
                run = start(directory)
                counts.starts += 1
                finished = counts.kills >= kills or not run.kill(chance.uniform(0, duration), chance)
                if finished:
                    run.end()
                else:
                    counts.kills += 1
                    done()
                resumed = run.resumed_from()
                if resumed is not None:
                    counts.steps_lost = max(counts.steps_lost, logged - resumed)
            counts.runs += 1
            if not same_bits(folder / "alone", directory):
                counts.different.append(directory.name)
        except RuntimeError as error:
            counts.unusable += 1
            print(f"{directory.name}, {ranks} ranks, stage {stage}: {error}", file=sys.stderr)
        shutil.rmtree(directory)
        yield


class Run:
    """A start of `train.py` on `ranks` processes of this machine, forked from a server that has imported everything."""

    def __init__(self, ranks: int, stage: int, recipe: Path, directory: Path, more: Sequence[str] = ()) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.log = directory / f"log-{len(list(directory.glob('log-*')))}"
        settings = [str(recipe), f"run.directory={directory}", f"engine.stage={stage}", *more]
        self.processes = fork(["train.py", *settings], self.log, ranks)

    def kill(self, seconds: float, chance: random.Random) -> bool:
        """Send SIGKILL to all ranks after `seconds`; False if the run has ended before."""
        if wait([process.sentinel for process in self.processes], seconds):
            return False
        first = chance.choice(self.processes)
        first.kill()
        time.sleep(chance.uniform(0, 0.05))
        for process in self.processes:
            process.kill()
            process.join()
        return True

    def end(self) -> None:
        """Wait for the end of the run. Raises RuntimeError, with the end of its log, if it fails or hangs."""
        deadline = time.monotonic() + TIME_LIMIT
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        if any(code != 0 for code in codes):
            raise RuntimeError(f"exit codes {codes} (None: still running): {self.log.read_text()[-3000:]}")

    def resumed_from(self) -> int | None:
        """The step from which the run resumed; None if its log does not say so."""
        match = re.search(r"resuming from .*\(step (\d+)\)", self.log.read_text() if self.log.exists() else "")
        return int(match[1]) if match else None


def last_step(directory: Path) -> int:
    """The last step that a run has logged; 0 before its first."""
    path = directory / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    steps = [int(match[1]) for line in lines if (match := re.match(r'{"step": (\d+), .*}$', line))]
    return max(steps, default=0)


def same_bits(one: Path, other: Path) -> bool:
    """Whether the last checkpoints of two runs have the same step and the same bits in every tensor of every rank."""
    from safetensors.torch import load_file

    folders = [run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip() for run in (one, other)]
    names = [sorted(path.name for path in folder.glob("rank-*.safetensors")) for folder in folders]
    if folders[0].name != folders[1].name or names[0] != names[1]:
        return False
    for name in names[0]:
        tensors, others = (load_file(folder / name) for folder in folders)
        if tensors.keys() != others.keys() or not all(bool((tensors[key] == others[key]).all()) for key in tensors):
            return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Read a hundred thousand damaged inputs: is each accepted whole or refused in one line?

    .venv/bin/python tests/fuzz.py [--minutes 10] [--only REGEX] [--add] [--json FILE]        make fuzz MINUTES=10

Valid configs, lists, images, tables, tars, .beton, MDS, LMDB and Parquet files, checkpoints and weights are changed at
random and read, each kind in a process of its own for an equal share of the time. A fault is any error that is not a
refusal of one line, an accepted input with impossible content, an input that takes over 10 seconds, a process that
dies, and one that takes more than 1 GiB in addition to what its first inputs took. With atheris on PYTHONPATH (`pip
install --target DIR atheris`) the coverage of swave's own code leads the changes; without it they are blind.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["DS_ACCELERATOR"] = "cpu"

from common.progress import progress_bar  # noqa: E402
from perf.machine import machine  # noqa: E402
from support.fuzzing.mutate import mutated  # noqa: E402

try:
    import atheris
except ImportError:
    atheris = None
OURS = ["common", "config", "evaluation", "launch", "model", "pipeline", "training"]
with atheris.instrument_imports(include=OURS) if atheris else contextlib.nullcontext():
    from support.fuzzing.targets import TARGETS, refuses

LONGEST, MEMORY, WARM = 10.0, 1 << 30, 50  # seconds of an input, bytes in addition to those after so many inputs
STARTS = 900.0  # seconds in which a process must have read its first input; on a busy machine imports take minutes


def main(arguments):
    parser = argparse.ArgumentParser(
        "tests/fuzz.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="in all (default 10)")
    parser.add_argument("--only", default="", metavar="REGEX", help="kinds of input whose name matches")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--add", action="store_true", help="add to the counts in FILE; give another seed")
    parser.add_argument("--json", type=Path, default=ROOT / "perf" / "results" / "fuzz.json", metavar="FILE")
    options = parser.parse_args(arguments)
    names = [name for name in TARGETS if re.search(options.only, name)]
    rows, share = [], 60 * options.minutes / max(1, len(names))
    before = json.loads(options.json.read_text()) if options.add else {"rows": [], "minutes": 0}
    with progress_bar(len(names), "fuzzing", "kind") as bar:
        for name in names:
            rows.append(fuzz(name, share, options.seed))
            whole = added(before["rows"], rows)
            minutes = round(before["minutes"] + share * len(rows) / 60, 1)
            report = {"inputs": sum(row["inputs"] for row in whole), "minutes": minutes, "rows": whole}
            report["engine"] = "atheris" if atheris else "blind changes"
            options.json.write_text(json.dumps(report | {"machine": machine()}, indent=1) + "\n")
            bar.update()
    for row in rows:
        print(
            f"{row['kind']:22} {row['inputs']:8,} inputs, {row['refused']:8,} refused, {row['megabytes']:5} MB more, "
            f"{row['coverage']:5} edges"
        )
        for fault in row["faults"]:
            print(f"    {fault}")
    print(f"{sum(row['inputs'] for row in rows):,} inputs, {sum(len(row['faults']) for row in rows)} faults")
    return int(any(row["faults"] for row in rows))


def added(before, rows):
    """The rows of an earlier report, with those of this one added."""
    whole = {row["kind"]: row for row in before}
    for row in rows:
        one = whole.get(row["kind"], {})
        sums = {key: row[key] + one.get(key, type(row[key])()) for key in ("inputs", "refused", "seconds", "faults")}
        most = {key: max(row[key], one.get(key, 0)) for key in ("megabytes", "coverage")}
        whole[row["kind"]] = row | sums | most
    return list(whole.values())


def fuzz(name, seconds, seed):
    """Inputs of one kind for so many seconds: a row of the report."""
    context = multiprocessing.get_context("spawn")
    row = {"kind": name, "inputs": 0, "refused": 0, "megabytes": 0, "coverage": 0}
    row |= {"seconds": round(seconds, 1), "faults": []}
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="swave-fuzz-") as folder:
        while time.monotonic() < end and len(row["faults"]) < 5:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=read_inputs, args=(name, end - time.monotonic(), seed + row["inputs"], Path(folder), sender)
            )
            process.start()
            sender.close()
            last, heard = {}, True
            while heard:
                try:
                    heard = receiver.poll(60 + 2 * LONGEST if last else STARTS)
                    last = receiver.recv() if heard else last
                except EOFError:
                    break
            if not heard:
                process.kill()
            process.join()
            log = Path(folder) / "log"
            told = log.read_text(errors="replace") if log.exists() else ""
            covered = re.findall(r"cov: (\d+)", told)
            row["coverage"] = max([row["coverage"], *map(int, covered)])
            row["inputs"] += last.get("inputs", 0)
            row["refused"] += last.get("refused", 0)
            row["megabytes"] = max(row["megabytes"], last.get("megabytes", 0))
            row["faults"] += last.get("faults", [])
            if not last.get("done"):
                data = next(Path(folder).glob("input*"), None)
                print(told[-600:], file=sys.stderr)
                how = "hangs" if not heard else f"died with {process.exitcode}"
                row["faults"].append(f"{how}: {data.read_bytes()[:200] if data else ''!r}")
    return row


def read_inputs(name, seconds, seed, folder, sender):
    """Change and read inputs, and send the counts every second."""
    os.chdir(ROOT)
    os.dup2(os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)  # messages of libraries and libFuzzer
    target, chance = TARGETS[name], random.Random(seed)
    seeds = target.seeds()
    for data in seeds:
        assert not refuses(target, data, folder), f"{name}: a valid input is refused"
    signal.signal(signal.SIGALRM, too_long)
    counts = {"inputs": 0, "refused": 0, "megabytes": 0, "faults": [], "done": False}
    end, told, base = time.monotonic() + seconds, 0.0, 0

    def read(data):
        nonlocal told, base
        signal.setitimer(signal.ITIMER_REAL, LONGEST)
        try:
            counts["refused"] += refuses(target, data, folder)
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}, line {place.lineno}"
            counts["faults"].append(f"{type(error).__name__}: {str(error)[:300]} ({where}) of {data[:120]!r}")
        signal.setitimer(signal.ITIMER_REAL, 0)
        counts["inputs"] += 1
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        base = used if counts["inputs"] <= WARM else base
        counts["megabytes"] = (used - base) >> 20
        if used - base > MEMORY:
            counts["faults"].append(f"takes {counts['megabytes']} MB: {data[:120]!r}")
        counts["done"] = time.monotonic() > end or len(counts["faults"]) >= 5
        if counts["done"] or time.monotonic() > told + 1:
            told = time.monotonic()
            sender.send(counts)
        if counts["done"]:
            os._exit(0)  # libFuzzer has no other way to stop

    if atheris is None:
        while True:
            read(mutated(chance, seeds))
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for index, data in enumerate(seeds):
        (corpus / str(index)).write_bytes(data)
    atheris.Setup(["fuzz", f"-seed={seed}", "-max_len=65536", "-rss_limit_mb=0", "-verbosity=1", str(corpus)], read)
    atheris.Fuzz()


def too_long(_number, _frame):
    raise TimeoutError(f"an input takes longer than {LONGEST:g} seconds")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

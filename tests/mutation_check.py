"""How many small changes of a module do its fast tests notice? By hand; needs cosmic-ray, not in the lock file.

    python tests/mutation_check.py [--sample 60] [--seed 0] [--minutes 6] [MODULE.py ...]

Each mutant (cosmic-ray's operators, without those that only change annotations) is written into a copy of the
checkout. Its tests run in a process forked from this one, first those on one process, then for survivors all that are
not slow. A mutant that hangs counts as killed. docs/testing.md has the figures and how to set up cosmic-ray.
"""

import argparse
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = {
    "model/sinkhorn.py": ["tests/model/test_sinkhorn.py"],
    "model/optimizer/lars.py": ["tests/model/test_model.py"],
    "model/optimizer/segments.py": ["tests/model/optimizer/test_segments.py"],
    "pipeline/order.py": ["tests/pipeline/test_order.py", "tests/pipeline/test_loader.py"],
    "pipeline/draw.py": ["tests/pipeline/test_draw.py"],
}
ONE_PROCESS = "not rank and not world and not loader and not collective"
ONLY_ANNOTATIONS = "BitOr"
LONGEST = 120  # seconds that the tests of a mutant may take


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=list(TESTS), metavar="MODULE.py")
    parser.add_argument("--sample", type=int, default=60, help="mutants of each module, drawn at random (default 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=6.0, help="after which a module's check ends (default 6)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        checkout = copy_of_checkout(Path(scratch) / "checkout")
        os.chdir(checkout)
        os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONDONTWRITEBYTECODE": "1"}
        sys.dont_write_bytecode = True
        sys.path[:0] = [str(checkout), str(checkout / "tests")]
        for name in ("numpy", "torch", "hypothesis", "pytest", "jaxtyping", "xdist", "_pytest.assertion.rewrite"):
            __import__(name)
        for module in options.modules:
            check(module, options)


def copy_of_checkout(target):
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def check(module, options):
    source = Path(module).read_text()
    every = list(mutants(source))
    drawn = random.Random(options.seed).sample(every, min(options.sample, len(every)))
    tests = [path for path in TESTS[module] if Path(path).exists()]
    if survives(tests, None) is False:
        sys.exit(f"{module}: its tests fail without any change")
    killed, survivors, end = 0, [], time.monotonic() + 60 * options.minutes
    for number, (operator, line, text) in enumerate(drawn):
        if time.monotonic() > end:
            drawn = drawn[:number]
            break
        Path(module).write_text(text)
        if survives(tests[:1], ONE_PROCESS) and survives(tests, None):
            survivors.append((operator, line, changed(source, text)))
        else:
            killed += 1
    Path(module).write_text(source)
    print(f"{module}: {killed} of {len(drawn)} mutants killed ({len(every)} there are)", flush=True)
    for operator, line, change in survivors:
        print(f"    line {line}, {operator}: {change}", flush=True)


def mutants(source):
    """(operator, line, mutated source) of every mutant."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    for name in operator_names():
        operator = get_operator(name)
        if ONLY_ANNOTATIONS in name or operator.arguments():  # the latter want a pattern of names
            continue
        for occurrence in itertools.count():
            text = mutate_code(source, operator(), occurrence)
            if text is None:
                break
            if text != source:
                yield name.rpartition("/")[2], line_of(source, text), text


def line_of(source, text):
    pairs = zip(source.splitlines(), text.splitlines(), strict=False)
    return next((number for number, (one, other) in enumerate(pairs, 1) if one != other), 0)


def changed(source, text):
    line = line_of(source, text)
    return text.splitlines()[line - 1].strip()


def survives(tests, chosen):
    """Whether all tests (those that -k `chosen` selects) pass, in a process forked from this one."""
    child = os.fork()
    if child == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        import pytest

        words = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow", *tests]
        os._exit(int(pytest.main([*words, *(["-k", chosen] if chosen else [])])))
    end = time.monotonic() + LONGEST
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status) in (0, 5)  # 5: -k selects none of them
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


if __name__ == "__main__":
    main(sys.argv[1:])

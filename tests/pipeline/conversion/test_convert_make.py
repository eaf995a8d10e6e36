"""`make convert` passes settings on unchanged, and reports a missing one in a line that names it."""

import os
import shutil
import subprocess
import sys

import pytest

from support.packed_sources import hugging_face
from support.small_datasets import PLAIN, ROOT, write

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*settings):
    """`make convert` with this Python; -o: make does not update the virtual environment."""
    command = ["make", "-o", "setup", "convert", f"RUN={sys.executable}", *settings]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def test_patterns_and_blanks_reach_the_program_unchanged(tmp_path):
    from pyarrow import parquet

    source = write(tmp_path / "my 'own' images", {"a b/1.jpg": PLAIN["rgb.jpg"]})
    for part in range(2):
        parquet.write_table(hugging_face()[part:3], source / f"train-{part}.parquet")
    done = make(f"SRC={source}/train-*.parquet", f"OUT={tmp_path}/the out", "FORMAT=wds", "WORKERS=1")
    assert done.returncode == 0 and "5 images of" in done.stdout.replace("\n", " "), done.stderr
    done = make(f"SRC={source}/a b", f"OUT={tmp_path}/x y.beton", "FORMAT=beton", "ARGS=--workers 1 --seed none")
    assert done.returncode == 0 and (tmp_path / "x y.beton").exists(), done.stderr


@pytest.mark.parametrize("missing", ["SRC", "OUT", "FORMAT"])
def test_a_missing_setting_is_one_line_that_names_it(tmp_path, missing):
    given = {"SRC": str(tmp_path), "OUT": f"{tmp_path}/x.beton", "FORMAT": "beton"}
    done = make(*(f"{name}={value}" for name, value in given.items() if name != missing))
    assert done.returncode == 2 and done.stdout == ""
    assert f"{missing}= is missing; e.g. make convert SRC=/my/images" in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []

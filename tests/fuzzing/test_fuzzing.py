"""Damaged inputs are accepted whole or refused in one line, and nothing in them is executed; `make fuzz` reads more."""

import io
import json
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from config.recipe import ROOT
from pipeline.conversion.arrays import load_plain
from support.fuzzing.mutate import mutated
from support.fuzzing.targets import TARGETS, refuses

SLOW = {"recipe", "key=value"}  # a hundredth of a second each
TEXTS = ("recipe", "key=value", "hostfile", "SLURM node list", "SLURM counts", "list of names")


@pytest.mark.parametrize("kind", TARGETS)
def test_changed_inputs_are_accepted_whole_or_refused_in_one_line(kind, tmp_path):
    target, chance = TARGETS[kind], random.Random(kind)
    seeds = target.seeds()
    assert not any(refuses(target, data, tmp_path) for data in seeds)
    for _ in range(10 if kind in SLOW else 60):
        data = mutated(chance, seeds)
        try:
            refuses(target, data, tmp_path)
        except Exception as error:
            raise AssertionError(f"{kind}: {data!r}") from error


@pytest.mark.parametrize("kind", [kind for kind in TEXTS if kind not in SLOW])
@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_text_is_accepted_whole_or_refused_in_one_line(kind, text, tmp_path_factory):
    refuses(TARGETS[kind], text.encode(), tmp_path_factory.getbasetemp())


# ---------------------------------------------------------------------------------------------- what inputs contain
class Marker:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def npz(marker):
    content = io.BytesIO()
    np.savez(content, version=np.array(marker, dtype=object), texts=np.array(marker, dtype=object))
    return content.getvalue()


def torch_file(marker):
    content = io.BytesIO()
    torch.save({"state_dict": marker}, content)
    return content.getvalue()


def yaml(marker):
    return f"run: !!python/object/apply:builtins.open ['{marker.path}', 'w']\n".encode()


EXECUTABLE = {
    "recipe": yaml,
    "key=value": lambda marker: b"run.seed=" + yaml(marker).strip().removeprefix(b"run: "),
    "sample table": npz,
    "checkpoint": lambda marker: b"\1" + pickle.dumps(marker),
    "weights, torch": torch_file,
    "weights, safetensors": lambda marker: pickle.dumps(marker),
    "Parquet": lambda marker: pickle.dumps(marker),
}


@pytest.mark.parametrize("kind", EXECUTABLE)
def test_nothing_in_an_input_is_executed(kind, tmp_path):
    marker = Marker(tmp_path / "marker")
    assert refuses(TARGETS[kind], EXECUTABLE[kind](marker), tmp_path)
    assert not marker.path.exists()


def test_nothing_in_a_pickle_of_cifar_is_executed(tmp_path):
    marker = Marker(tmp_path / "marker")
    with pytest.raises(ValueError, match="x"):
        load_plain(pickle.dumps({b"data": marker}), "x")
    assert not marker.path.exists()


def test_the_marker_works(tmp_path):
    pickle.loads(pickle.dumps(Marker(tmp_path / "marker"))).close()
    assert (tmp_path / "marker").exists()


@pytest.mark.slow(seconds=15)
def test_the_program_counts_what_it_reads(tmp_path):
    command = [sys.executable, "tests/fuzz.py", "--minutes", "0.05", "--only", "counts", "--json", str(tmp_path / "x")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads((tmp_path / "x").read_text())["rows"]
    assert row["kind"] == "SLURM counts" and row["inputs"] > row["refused"] > 0 and not row["faults"]

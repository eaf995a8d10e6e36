"""The benchmarks of sample tables, at toy size."""

import argparse
import json

import pytest

from config.recipe import ROOT
from perf.tables.scale import SCAN
from perf.tables.scale import run as scale
from perf.tables.scan import BASE, DECODE, HEADERS, copies
from perf.tables.scan import run as scan
from support.programs import run_module

pytestmark = pytest.mark.slow(seconds=20)


def test_scans_take_turns_and_ratios_are_of_headers(tmp_path):
    options = argparse.Namespace(base=None, images=30, rounds=1, workers=1, json=None)
    report = scan(options, tmp_path)
    assert report["images"] == 30 and 40_000 < report["mean_bytes"] < 90_000
    for state in ("warm", "cold"):
        assert set(report[state]) == {HEADERS, DECODE}
        assert report[state][HEADERS]["seconds_of_headers"] == report[state][HEADERS]["cpu_seconds_of_headers"] == 1
        assert report[state][DECODE]["cpu_seconds_of_headers"] > 3  # far below what docs/performance.md shows
    assert report["parts"]["parse the header"] < report["parts"]["decode"] / 5
    with_base = scan(argparse.Namespace(**vars(options) | {"base": ROOT}), tmp_path)
    assert set(with_base["warm"]) == {HEADERS, BASE}


def test_more_images_are_copies(tmp_path, monkeypatch):
    monkeypatch.setattr("perf.tables.scan.DIFFERENT", 2)
    folder = copies(tmp_path, 5, 1)
    data = [(folder / f"{index:07d}.jpg").read_bytes() for index in range(5)]
    assert data[0] == data[2] == data[4] != data[1] == data[3]


def test_a_table_is_measured_in_each_phase_by_ranks_of_both_checkouts(tmp_path):
    options = argparse.Namespace(rows="50000", ranks=2, base=ROOT, json=None, scan=True)
    report = json.loads(json.dumps(scale(options, tmp_path)))
    (result,) = report["rows"].values()
    assert set(result["checkouts"]) == {"here", "base"}
    for phases in result["checkouts"].values():
        assert next(iter(phases)) == "open" and SCAN in phases
        assert phases["checkpoint"]["result"] < 100  # an epoch and a position, whatever the number of rows
        for own in phases.values():
            assert own["seconds"] >= 0 and own["peak"] >= own["memory"] - 0.1
    assert list(tmp_path.glob("*.npz")) == []


@pytest.mark.parametrize(
    ("program", "arguments", "line"),
    [
        ("perf.tables.scale", ["--rows", "many"], "--rows=many: give numbers from 8192 on"),
        ("perf.tables.scan", ["--images", "0"], "--images, --rounds and --workers must be at least 1"),
        ("perf.tables.scan", ["--base", "/nowhere"], "--base=/nowhere: expected a checkout of swave"),
    ],
)
def test_mistakes_are_one_line_and_code_2(program, arguments, line):
    process = run_module(program, *arguments)
    assert process.returncode == 2
    assert process.stderr.startswith(f"swave: {line}")

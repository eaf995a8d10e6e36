"""The benchmark of images with their own channels, at toy size."""

import argparse

import pytest

from perf.channels import BACKENDS, Kind, main, measure, show
from pipeline.crops import View


def test_both_backends_make_all_crops_of_each_kind(tmp_path, capsys):
    options = argparse.Namespace(rounds=2, images=8, threads=1, json=None)
    kinds = (Kind(24, 4, "uint16", beton=True), Kind(20, 1, "float32"))
    report = measure(options, tmp_path, kinds, (View(16, (0.2, 1.0)),))
    assert [row["kind"] for row in report["rows"]] == ["24 x 24, 4 of uint16, .beton", "20 x 20, 1 of float32"]
    for row in report["rows"]:
        assert all(row["cpu_ms"][name] > 0 and row["images_per_second"][name] > 0 for name in BACKENDS)
        low, high = row["ratios"]
        assert 0 < low <= row["ratio"] <= high
        low, high = row["wall_ratios"]
        assert 0 < low <= row["wall_ratio"] <= high
    show(report)
    assert capsys.readouterr().out.count("\n") == 4


def test_a_mistake_ends_with_code_2(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--rounds", "0"])
    assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1

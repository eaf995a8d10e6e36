"""The benchmark of the thread that trains beside the loader, at toy size."""

import argparse

import pytest

from perf.loader.calls import BATCH, HERE, NOBODY, WAYS, main, measure, show
from support.photos import flat_colors, write_folder


@pytest.mark.slow
def test_the_calls_are_timed_beside_each_way_to_load(tmp_path, capsys):
    images = write_folder(tmp_path / "images", flat_colors(BATCH, side=20))
    report = measure(argparse.Namespace(backends="ffcv", rounds=1, steps=2, images=str(images)))
    ways = report["backends"]["ffcv"]
    assert tuple(ways) == WAYS and ways[NOBODY]["calls"] == 1
    for own in ways.values():
        assert own["calls"] > 0 and 0 <= own["waits"] < 1 and own["longest_ms"] > 0
    assert ways[HERE]["images_per_second"] > 0
    show(report)
    assert "own process" in capsys.readouterr().out


def test_a_backend_without_such_threads_is_refused(capsys):
    assert main(["--backends", "torchvision"]) == 2
    assert "torchvision is neither ffcv nor dali" in capsys.readouterr().err

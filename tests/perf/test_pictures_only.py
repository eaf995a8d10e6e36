"""Benchmarks that are for RGB say so for other images, before they measure anything."""

import pytest

from config.recipe import ROOT
from support.native.images import tiles, write_tiles
from support.programs import run_module


@pytest.mark.parametrize("program", ["perf.step", "perf.loader"])
def test_images_of_other_channels_are_one_line(tmp_path, program):
    images = write_tiles(tmp_path / "tiles", tiles(16, 20, channels=5))
    done = run_module(program, "--data", images, "--budget", 20, folder=ROOT)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"swave: --data={images}: images of 5 channels of uint16, and this program is for 8-bit RGB")

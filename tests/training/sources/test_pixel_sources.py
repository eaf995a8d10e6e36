"""Runs on 16-bit and 5-channel images, bands, HDF5 and tiles: to a k-NN score on two ranks, and after a kill of one to
the same losses."""

import json

import numpy as np
import pytest
import tifffile

from pipeline.conversion.tiling.grid import Tiling
from pipeline.dataset.finding.choice import Choice
from support.conversions import converted
from support.native.images import gray_png, npy, tiles, write_tiles
from support.tiny_runs import RECIPE, interrupted, kill, losses, train, wait_for_step

pytestmark = pytest.mark.slow(seconds=90)
BANDS = [f"b{band}" for band in range(5)]


def gray16(root):
    """PNGs of 12 bits in 16, stretched."""
    write_tiles(root / "images", [tile[..., 0] for tile in tiles(44, 20)], gray_png, "png")
    return f"path: {root}/images, stretch: [1, 99]", "1 channel of uint16"


def bands(root):
    """A file a band, read in place."""
    for row, tile in enumerate(tiles(44, 20, channels=5)):
        for band, plane in zip(BANDS, np.moveaxis(tile, 2, 0), strict=True):
            file = root / "scenes" / ("dark", "light")[row % 2] / f"{row:02d}_{band}.npy"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(npy(plane))
    return f"path: {root}/scenes, bands: '{','.join(BANDS)}'", "5 channels of uint16"


def five_channels(root):
    """The same, put together in a .beton."""
    bands(root)
    converted(root / "scenes", root / "x.beton", "beton", choice=Choice(bands=",".join(BANDS)))
    return f"path: {root}/x.beton", "5 channels of uint16"


def hdf5(root):
    """A compressed array, four images a chunk, which h5py reads in each rank."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(root / "x.h5", "w") as file:
        file.create_dataset("images", data=np.stack(tiles(44, 20)), chunks=(4, 20, 20, 4), compression="gzip")
        file["labels"] = np.arange(44) % 2
    return f"path: {root}/x.h5", "4 channels of uint16"


def tiled(root):
    """Tiles of two scenes of 4 channels."""
    for name, scene in zip(("dark", "light"), tiles(2, 110, channels=4), strict=True):
        (root / "scenes" / name).mkdir(parents=True)
        tifffile.imwrite(root / "scenes" / name / "s.tif", scene, photometric="minisblack", tile=(32, 32))
    converted(root / "scenes", root / "tiles", "wds", tiling=Tiling(20, 0, "std>8"))
    return f"path: {root}/tiles", "4 channels of uint16"


@pytest.mark.parametrize("source", [gray16, bands, five_channels, hdf5, tiled])
def test_a_run_ends_with_a_score_and_a_killed_one_goes_on_to_the_same_losses(tmp_path, source):
    data, said = source(tmp_path)
    changes = {"backend: dali": "backend: auto", "epochs: 3": "epochs: 2", "every: 2 steps": "every: 2 steps, keep: 9"}
    recipe = RECIPE
    for old, new in changes.items():
        recipe = recipe.replace(old, new)
    (tmp_path / "tiny.yaml").write_text(recipe + f"data: {{{data}, cache: {tmp_path}/tables}}\n")
    output = train(tmp_path, "whole", ranks=2)
    assert said in output
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["world_size"] == 2 and summary["knn"] > 0.5  # the classes differ in brightness
    if source in (five_channels, hdf5):  # one file, open in each rank
        process = train(tmp_path, "killed", ranks=2, wait=False)
        wait_for_step(tmp_path, "killed", 5, process)
        process.processes[1].kill()  # the other may end by itself before it is killed
        kill(process)
        assert process.returncode != 0
    else:
        interrupted(tmp_path, "whole", "killed", 4)
    train(tmp_path, "killed", ranks=2)
    whole = losses(tmp_path, "whole")
    assert len(whole) >= 8 and losses(tmp_path, "killed") == whole

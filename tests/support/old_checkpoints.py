"""Lays out runs of an older trainer: recipe and checkpoint from training/checkpoint/old_checkpoints, and images."""

import hashlib
import shutil

from config.recipe import ROOT

OLD = ROOT / "tests" / "training" / "checkpoint" / "old_checkpoints"
IMAGES = 36


def old_run(root, method):
    """Lay out an interrupted run below `root`: recipe tiny.yaml, images, and METHOD/checkpoints with the checkpoint."""
    write_images(root / "images")
    shutil.copy(OLD / method / "recipe.yaml", root / "tiny.yaml")
    shutil.copytree(OLD / method / "step-000000006", root / method / "checkpoints" / "step-000000006")
    return root


def write_images(folder):
    """The images of the old runs: bytes of SHAKE-256 as uncompressed pixels, so that every machine writes the same."""
    for index in range(IMAGES):
        noise = hashlib.shake_256(str(index).encode()).digest(3 * 20 * 20)
        path = folder / f"class{index % 2}" / f"{index:02d}.ppm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"P6\n20 20\n255\n" + bytes(value // 2 + 100 * (index % 2) for value in noise))

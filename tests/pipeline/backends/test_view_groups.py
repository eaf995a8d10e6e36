"""Views that differ: each backend makes each group's own changes, and no other's."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.crops import UNCHANGED, Blur, Changes, Crops, Jitter, Posterize, Solarize, View
from pipeline.dataset.open import open_dataset
from pipeline.loader import BACKENDS, Loader
from support.photos import photographs, write_folder

PLAIN = Changes(**UNCHANGED)
BLURRED = replace(PLAIN, blur=Blur(1.0, (2.0, 2.0)))
BRIGHT = replace(PLAIN, solarize=Solarize(1.0, 0.6), posterize=Posterize(1.0, 3), vertical_flip=0.5, quarter_turn=0.5)
GRAY = replace(PLAIN, grayscale=1.0, jitter=Jitter(1.0, 0.2, 0.2, 0.0, 0.0))
WINDOWS = (View(64, (0.3, 1.0)),) * 3 + (View(32, (0.1, 0.3)),)
DIFFERENT = Crops(
    views=tuple(replace(view, own=own) for view, own in zip(WINDOWS, (BLURRED, PLAIN, BRIGHT, GRAY), strict=True))
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = write_folder(tmp_path_factory.mktemp("photos"), photographs())
    return open_dataset(root, tmp_path_factory.mktemp("tables"), workers=1, progress=False)


def views_of(table, crops, backend):
    """The crops of each view in levels, (6, 3, size, size)."""
    loader = Loader(table, crops, backend=backend, seed=4, global_batch=6)
    batch = next(iter(loader))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (crops.mean, crops.std))
    levels = [(group.clone() * std + mean) * 255 for group in batch.crops]
    loader.close()
    return [part for group in levels for part in group.split(6)]


@pytest.fixture(scope="module")
def reference(photos):
    return views_of(photos, DIFFERENT, "torchvision")


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_group_has_its_own_changes(photos, reference, backend):
    blurred, plain, bright, gray = made = views_of(photos, DIFFERENT, backend)
    for one, other, limit in zip(made, reference, (2.0, 1.5, 4.0, 2.5), strict=True):
        assert (one - other).abs().mean() < limit
    untouched = views_of(photos, Crops(views=WINDOWS, **UNCHANGED), backend)
    assert torch.equal(plain, untouched[1])
    edges = [(crop[..., 1:] - crop[..., :-1]).abs().mean() for crop in (blurred, untouched[0])]
    assert edges[0] < 0.7 * edges[1]
    kept = set(np.unique(np.rint(bright.numpy())).astype(int).tolist())
    assert kept <= set(range(0, 256, 32)) and bright.max() < 160  # 255 - 153 at most, or below 153, to 3 bits
    assert (gray.amax(1) - gray.amin(1)).max() < 1.5 < (untouched[3].amax(1) - untouched[3].amin(1)).max()

"""How small an image may be decoded: a function of its draw alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.scaling import SHRINKS, shrinks


def shrink_of(windows, sizes):
    return int(shrinks(np.array([[(0, 0, *window) for window in windows]]), sizes)[0])


@pytest.mark.parametrize(
    ("windows", "sizes", "expected"),
    [
        ([(223, 900)], [224], 1),
        ([(448, 448)], [224], 2),
        ([(447, 900)], [224], 1),
        ([(896, 900), (384, 400)], [224, 96], 4),
        ([(896, 900), (383, 400)], [224, 96], 2),
        ([(5000, 5000)], [96], 8),
        ([(1, 1)], [96], 1),
    ],
)
def test_the_narrowest_window_decides(windows, sizes, expected):
    assert shrink_of(windows, sizes) == expected


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9000), st.integers(1, 9000), st.integers(4, 600)), min_size=1, max_size=9))
def test_no_window_becomes_smaller_than_its_crop_and_none_could_be_decoded_smaller(views):
    windows, sizes = [view[:2] for view in views], [view[2] for view in views]
    shrink = shrink_of(windows, sizes)
    assert shrink in SHRINKS
    assert shrink == 1 or all(min(window) >= shrink * size for window, size in zip(windows, sizes, strict=True))
    assert shrink == 8 or any(min(window) < 2 * shrink * size for window, size in zip(windows, sizes, strict=True))


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 4))
def test_a_row_has_the_same_scale_in_any_batch(seed, rows, views):
    random = np.random.default_rng(seed)
    window, sizes = random.integers(1, 3000, (rows, views, 4)), random.integers(4, 300, views)
    together = shrinks(window, sizes)
    assert [int(shrinks(window[[row]], sizes)[0]) for row in range(rows)] == together.tolist()

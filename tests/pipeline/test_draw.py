"""The draw: a function of (seed, epoch, row, view), with torchvision's distributions."""

import itertools
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from pipeline.crops import Blur, Changes, Crops, Jitter, Posterize, Solarize, View
from pipeline.draw import center, draw, philox

SWAV = Crops(views=(View(224, (0.14, 1.0)),) * 2 + (View(96, (0.05, 0.14)),) * 6)
PINNED = [2236144004, 80068727, 1176425683, 2470727770, 3408521174, 2426223480]  # checksums of what version 0.1.0 draws


def fields(drawn):
    return [
        drawn.window,
        drawn.flip,
        drawn.jitter,
        drawn.factors,
        drawn.order,
        drawn.grayscale,
        drawn.blur,
        drawn.sigma,
        drawn.turns,
        drawn.solarize,
        drawn.posterize,
        drawn.gains,
    ]


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, words):
    assert tuple(philox(counter, key).tolist()) == words


@given(rows=st.lists(st.integers(0, 2**40), min_size=1, max_size=20, unique=True), cut=st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_a_row_draws_the_same_whatever_its_batch(rows, cut):
    rows = np.array(rows)
    sizes = rows % 300 + 8, rows % 200 + 8
    together = draw(SWAV, 7, 3, rows, *sizes)
    parts = [
        draw(SWAV, 7, 3, rows[part], sizes[0][part], sizes[1][part])
        for part in (slice(None, cut), slice(cut, None))
        if len(rows[part])
    ]
    for whole, *pieces in zip(fields(together), *(fields(part) for part in parts), strict=True):
        np.testing.assert_array_equal(whole, np.concatenate(pieces))


@given(height=st.integers(1, 3000), width=st.integers(1, 3000), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_windows_lie_within_the_image(height, width, seed):
    window = draw(SWAV, seed, 0, np.arange(4), np.full(4, height), np.full(4, width)).window
    assert (window[..., :2] >= 0).all()
    assert (window[..., 2:] >= 1).all()
    assert (window[..., 0] + window[..., 2] <= height).all()
    assert (window[..., 1] + window[..., 3] <= width).all()


def test_rows_views_epochs_and_seeds_draw_apart():
    """The published code draws the same windows on every rank (with one seed); here ranks differ by their rows."""
    size = np.full(64, 400)
    base = draw(SWAV, 1, 0, np.arange(64), size, size).window
    others = [
        draw(SWAV, 1, 0, np.arange(64, 128), size, size).window,  # another rank's rows
        draw(SWAV, 1, 1, np.arange(64), size, size).window,
        draw(SWAV, 2, 0, np.arange(64), size, size).window,
    ]
    for other in others:
        assert (base == other).all(axis=-1).mean() < 0.01
    for view in range(1, 2):
        assert (base[:, view] == base[:, 0]).all(axis=-1).mean() < 0.05


def test_windows_have_the_distribution_of_random_resized_crop():
    import torch
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    image = torch.zeros(1, 375, 500)
    n = 10_000
    for view in (View(224, (0.14, 1.0)), View(96, (0.05, 0.14))):
        windows = draw(Crops(views=(view,)), 5, 0, np.arange(n), np.full(n, 375), np.full(n, 500)).window[:, 0]
        reference = np.array([RandomResizedCrop.get_params(image, view.scale, (3 / 4, 4 / 3)) for _ in range(n)])
        area = [w[:, 2] * w[:, 3] for w in (windows, reference)]
        ratio = [w[:, 3] / w[:, 2] for w in (windows, reference)]
        for name, (a, b) in {
            "top": (windows[:, 0], reference[:, 0]),
            "left": (windows[:, 1], reference[:, 1]),
            "area": area,
            "ratio": ratio,
        }.items():
            assert ks_2samp(a, b).pvalue > 1e-3, (view, name)


def test_colors_have_the_distribution_of_color_jitter():
    import torch
    from torchvision.transforms import ColorJitter

    torch.manual_seed(0)
    n = 10_000
    drawn = draw(SWAV, 5, 0, np.arange(n), np.full(n, 100), np.full(n, 100))
    reference = [
        ColorJitter.get_params((0.2, 1.8), (0.2, 1.8), (0.2, 1.8), (-0.2, 0.2)) for _ in range(n)
    ]  # (order, brightness, contrast, saturation, hue)
    for index in range(4):
        assert ks_2samp(drawn.factors[:, 0, index], [t[index + 1] for t in reference]).pvalue > 1e-3, index
    # each of the 24 orders about as often as in torchvision: 417 of 10,000, standard deviation 20
    orders = np.unique(drawn.order[:, 0], axis=0, return_counts=True)[1]
    assert len(orders) == 24
    assert np.abs(orders - n / 24).max() < 5 * 20
    for share, expected in [
        (drawn.jitter.mean(), 0.8),
        (drawn.grayscale.mean(), 0.2),
        (drawn.blur.mean(), 0.5),
        (drawn.flip.mean(), 0.5),
    ]:
        assert abs(share - expected) < 0.01
    assert ks_2samp(drawn.sigma[:, 0], np.random.default_rng(0).uniform(0.1, 2.0, n)).pvalue > 1e-3


def test_chances_are_independent_of_each_other_and_of_the_view():
    drawn = draw(SWAV, 5, 0, np.arange(20_000), np.full(20_000, 100), np.full(20_000, 100))
    columns = [drawn.flip[:, 0], drawn.flip[:, 1], drawn.jitter[:, 0], drawn.grayscale[:, 0], drawn.blur[:, 0]]
    columns += [drawn.factors[:, 0, index] for index in range(4)]
    correlation = np.corrcoef(np.array(columns, dtype=float)) - np.eye(len(columns))
    assert np.abs(correlation).max() < 0.04


def test_extreme_shapes_fall_back_to_the_central_window():
    crops = Crops(views=(View(224, (0.9, 1.0)),))
    window = draw(crops, 0, 0, np.arange(2), np.array([10, 1000]), np.array([1000, 10])).window[:, 0]
    assert window.tolist() == [[0, 493, 10, 13], [493, 0, 13, 10]]  # aspect ratios 4/3 and 3/4, in the middle


def test_an_image_within_the_ratios_falls_back_to_all_of_it():
    crops = Crops(views=(View(224, (1.0, 1.0)),))
    window = draw(crops, 0, 0, np.arange(2), np.array([900, 1000]), np.array([1000, 900])).window[:, 0]
    assert window.tolist() == [[0, 0, 900, 1000], [0, 0, 1000, 900]]


def test_the_evaluation_draw_is_the_usual_center_crop():
    crops = SWAV.for_evaluation(224, 0.875)
    drawn = center(crops, np.arange(1), np.array([256]), np.array([400]))
    assert drawn.window[0, 0].tolist() == [16, 88, 224, 224]
    assert drawn.factors[0, 0].tolist() == [1, 1, 1, 0]  # neutral
    assert not any(flag.any() for flag in (drawn.flip, drawn.jitter, drawn.grayscale, drawn.blur))


def test_draws_are_pinned():
    """A change of these numbers changes the crops of every existing run."""
    crops = Crops(views=(View(32, (0.14, 1.0)), View(16, (0.05, 0.14))), jitter=Jitter(), blur=Blur())
    drawn = draw(crops, 31, 2, np.array([5]), np.array([480]), np.array([640]))
    assert drawn.window[0].tolist() == [[77, 101, 358, 386], [70, 97, 140, 138]]
    assert drawn.order[0].tolist() == [[0, 3, 2, 1], [3, 1, 0, 2]]
    np.testing.assert_allclose(drawn.factors[0, 0], [1.51767, 0.2268887, 1.526159, 0.01308307], rtol=1e-6)
    swav = draw(SWAV, 31, 2, np.arange(100), np.full(100, 480), np.full(100, 640))
    flags = swav.flip, swav.jitter, swav.grayscale, swav.blur, swav.window, swav.order
    assert [zlib.crc32(np.ascontiguousarray(values).tobytes()) for values in flags] == PINNED
    assert swav.sigma.astype(np.float64).sum() == pytest.approx(852.3427230864763, rel=1e-6)


# ---- views that differ

FIRST = Changes(flip=0.3, blur=Blur(1.0, (0.5, 3.0)), jitter=Jitter(0.9, 0.4, 0.4, 0.2, 0.1), grayscale=0.4)
SECOND = Changes(blur=Blur(0.1), solarize=Solarize(0.2), posterize=Posterize(0.3), vertical_flip=0.4, quarter_turn=0.6)
DIFFERENT = Crops(views=(View(224, (0.14, 1.0), FIRST), View(224, (0.14, 1.0), SECOND), View(96, (0.05, 0.14))))


def test_each_view_has_the_chances_and_strengths_of_its_own():
    n = 20_000
    drawn = draw(DIFFERENT, 5, 0, np.arange(n), np.full(n, 100), np.full(n, 100))
    for name, shares in {
        "jitter": (0.9, 0.8, 0.8),
        "grayscale": (0.4, 0.2, 0.2),
        "blur": (1.0, 0.1, 0.5),
        "solarize": (0, 0.2, 0),
        "posterize": (0, 0.3, 0),
    }.items():
        np.testing.assert_allclose(getattr(drawn, name).mean(axis=0), shares, atol=0.012, err_msg=name)
    low, high = drawn.factors.min(axis=0), drawn.factors.max(axis=0)
    np.testing.assert_allclose(low, [[0.6, 0.6, 0.8, -0.1], *[[0.2, 0.2, 0.2, -0.2]] * 2], atol=0.01)
    np.testing.assert_allclose(high, [[1.4, 1.4, 1.2, 0.1], *[[1.8, 1.8, 1.8, 0.2]] * 2], atol=0.01)
    np.testing.assert_allclose(drawn.sigma.min(axis=0), [0.5, 0.1, 0.1], atol=0.01)
    np.testing.assert_allclose(drawn.sigma.max(axis=0), [3.0, 2.0, 2.0], atol=0.01)


def test_all_eight_positions_of_a_crop_have_their_chance():
    """Horizontal flip 0.5, vertical 0.4, and a turn with 0.6: none stays with 0.4, the others have 0.2 each."""
    n = 40_000
    drawn = draw(DIFFERENT, 5, 0, np.arange(n), np.full(n, 100), np.full(n, 100))
    expected = {(bool(flip), turns): 0.0 for flip in (0, 1) for turns in range(4)}
    for flip, vertical, turns in itertools.product((0, 1), (0, 1), range(4)):
        chance = 0.5 * (0.4 if vertical else 0.6) * (0.2 if turns else 0.4)
        expected[bool(flip ^ vertical), (turns + 2 * vertical) % 4] += chance
    for (flip, turns), chance in expected.items():
        found = ((drawn.flip[:, 1] == flip) & (drawn.turns[:, 1] == turns)).mean()
        assert abs(found - chance) < 0.01, (flip, turns)
    assert not drawn.turns[:, [0, 2]].any()
    crop = np.arange(9).reshape(3, 3)
    for flip, turns in expected:
        one = replace(center(SWAV.for_evaluation(8, 1.0), np.arange(1), np.array([8]), np.array([8])),
                      flip=np.array([[flip]]), turns=np.array([[turns]], np.uint8))  # fmt: skip
        mirror, upside, exchange = (bool(part[0, 0]) for part in one.oriented)
        made = crop[:: -1 if upside else 1, :: -1 if mirror else 1]
        np.testing.assert_array_equal(made.T if exchange else made, np.rot90(np.fliplr(crop) if flip else crop, turns))


@given(st.lists(st.floats(0, 2), min_size=3, max_size=3), st.integers(1, 13), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_gains_are_drawn_for_each_channel_and_leave_all_other_numbers_as_they_are(strengths, channels, seed):
    rows, size = np.arange(40), np.full(40, 300)
    plain = replace(SWAV, views=SWAV.views[:3], mean=(0.5,) * channels, std=(0.3,) * channels)
    own = [Changes(jitter=Jitter(gain=strength)) for strength in strengths]
    views = tuple(replace(view, own=one) for view, one in zip(plain.views, own, strict=True))
    before, drawn = (draw(crops, seed, 3, rows, size, size) for crops in (plain, replace(plain, views=views)))
    for one, other in zip(fields(before)[:-1], fields(drawn)[:-1], strict=True):
        np.testing.assert_array_equal(one, other)
    assert drawn.gains.shape == (40, 3, channels) and (before.gains == 1).all()
    for view, strength in enumerate(np.float32(strengths)):
        gains = drawn.gains[:, view]
        assert gains.min() >= max(0, 1 - strength) - 1e-6 and gains.max() <= 1 + strength + 1e-6
        assert (gains == 1).all() if strength == 0 else True
    more = replace(plain, views=views, mean=(0.5,) * 20, std=(0.3,) * 20)
    np.testing.assert_array_equal(drawn.gains, draw(more, seed, 3, rows, size, size).gains[..., :channels])


def test_gains_are_uniform_and_independent():
    n = 20_000
    crops = replace(SWAV, jitter=Jitter(gain=0.4), mean=(0.5,) * 6, std=(0.3,) * 6)
    drawn = draw(crops, 5, 0, np.arange(n), np.full(n, 100), np.full(n, 100))
    columns = [*np.moveaxis(drawn.gains[:, :2].reshape(n, 12), 1, 0), *np.moveaxis(drawn.factors[:, 0], 1, 0)]
    for column in columns[:12]:
        assert ks_2samp(column, np.random.default_rng(0).uniform(0.6, 1.4, n)).pvalue > 1e-4
    correlation = np.corrcoef(np.array(columns, dtype=float)) - np.eye(len(columns))
    assert np.abs(correlation).max() < 0.04


def test_further_changes_leave_the_numbers_of_the_others_as_they_are():
    size = np.full(50, 300)
    more = replace(SWAV, solarize=Solarize(0.5), posterize=Posterize(0.5), quarter_turn=0.5)
    one, other = (draw(crops, 5, 1, np.arange(50), size, size) for crops in (SWAV, more))
    for before, after in zip(fields(one)[:8], fields(other)[:8], strict=True):
        np.testing.assert_array_equal(before, after)
    alone = draw(replace(SWAV, views=SWAV.views[:1]), 5, 1, np.arange(50), size, size)
    np.testing.assert_array_equal(alone.window[:, 0], draw(DIFFERENT, 5, 1, np.arange(50), size, size).window[:, 0])

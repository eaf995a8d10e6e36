"""Measures without labels: against a plain numpy computation of their equations, and where the answer is known."""

import math

import numpy as np
import pytest
import torch

from evaluation.label_free import FIRST, LAST, alpha_req, lidar, rankme


def entropy_rank(values, epsilon=1e-7):
    share = values / values.sum() + epsilon
    return math.exp(-sum(p * math.log(p) for p in share))


@pytest.mark.parametrize(("rows", "dim"), [(200, 24), (20, 64)])
def test_rankme_is_its_equation(rows, dim):
    points = np.random.default_rng(0).normal(size=(rows, dim)) * np.linspace(0.1, 3, dim)
    values = np.linalg.svd(points, compute_uv=False)
    assert rankme(torch.from_numpy(points)) == pytest.approx(entropy_rank(values), rel=1e-9)


def test_lidar_is_its_equation():
    generator = np.random.default_rng(1)
    images, views, dim = 60, 5, 12
    points = generator.normal(size=(images, 1, dim)) * np.linspace(0.2, 2, dim)
    points = points + generator.normal(size=(images, views, dim)) * 0.5
    means = points.mean(1)
    between, within = np.zeros((dim, dim)), 1e-4 * np.eye(dim)
    for image in range(images):
        between += np.outer(means[image] - means.mean(0), means[image] - means.mean(0)) / images
        for view in range(views):
            away = points[image, view] - means[image]
            within += np.outer(away, away) / images / views
    variances, axes = np.linalg.eigh(within)
    root = axes @ np.diag(variances**-0.5) @ axes.T  # the symmetric one
    values = np.linalg.eigvalsh(root @ between @ root)
    assert lidar(torch.from_numpy(points)) == pytest.approx(entropy_rank(values), rel=1e-9)


def test_alpha_is_a_weighted_line_through_the_logarithms():
    points = np.random.default_rng(2).normal(size=(300, 150)) * np.arange(1, 151) ** -0.6
    spectrum = np.sort(np.linalg.eigvalsh(np.cov(points.T)))[::-1]
    i = np.arange(FIRST + 1, LAST + 1)
    slope, _ = np.polyfit(np.log(i), np.log(spectrum[FIRST:LAST]), 1, w=np.sqrt(1 / i))  # numpy squares its weights
    assert alpha_req(torch.from_numpy(points)) == pytest.approx(-slope, rel=1e-9)


@pytest.mark.parametrize("directions", [1, 4, 16])
def test_equal_directions_are_their_number(directions):
    axes = torch.eye(16)[torch.arange(320) % directions]
    assert rankme(axes) == pytest.approx(directions, rel=1e-4)
    signs = torch.ones(320)
    signs[160:] = -1  # so that the mean is 0 and no direction is lost to it
    noise = 0.01 * torch.randn(320, 8, 16, generator=torch.Generator().manual_seed(0))
    assert lidar((signs[:, None] * axes)[:, None] + noise) == pytest.approx(directions, rel=0.01)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.5])
def test_an_exact_power_law_has_its_exponent(alpha):
    """Columns that are orthogonal to each other and to ones, with variances i^-alpha."""
    basis = torch.linalg.qr(torch.randn(200, 121, generator=torch.Generator().manual_seed(0)).double())[0]
    centered = torch.linalg.qr(basis - basis.mean(0))[0][:, :120]
    rows = centered * torch.arange(1, 121).double() ** (-alpha / 2)
    assert alpha_req(rows) == pytest.approx(alpha, rel=1e-6)


def test_lidar_falls_where_images_cannot_be_told_from_their_augmentations():
    """Both have rank 16 for RankMe, which does not see that the second differs only by noise in 12 dimensions."""
    generator = torch.Generator().manual_seed(3)
    images, noise = torch.randn(400, 1, 16, generator=generator), torch.randn(400, 8, 16, generator=generator)
    good, poor = images + 0.1 * noise, images * (torch.arange(16) < 4) + noise
    assert rankme(good.flatten(0, 1)) > 15 and rankme(poor.flatten(0, 1)) > 13
    assert lidar(good) > 15 and lidar(poor) < 10


def test_collapse_has_no_rank_and_no_power_law():
    assert rankme(torch.zeros(50, 8)) == 0 and lidar(torch.ones(50, 3, 8)) == 0
    assert rankme(torch.ones(50, 8)) == pytest.approx(1, abs=1e-4)
    assert math.isnan(alpha_req(torch.ones(50, 8)))

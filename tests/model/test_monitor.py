"""The rank of the embeddings: it shows dimensional collapse, which codes and spread do not show."""

import math

import pytest
import torch
from torch.nn import functional

from model.monitor import CodeMonitor, advice, loss_of_a_guess

DIM, BATCH = 16, 64


def rank_of(embeddings, steps=1):
    monitor = CodeMonitor(4, DIM)
    for _ in range(steps):
        monitor.update(torch.full((len(embeddings), BATCH, 4), 0.25), embeddings, torch.tensor(1.0))
    return monitor.summary()["embedding_rank"]


@pytest.mark.parametrize("directions", [1, 4, 16])
def test_the_rank_is_the_number_of_directions(directions):
    spread = torch.randn(2, 4000, DIM, generator=torch.Generator().manual_seed(0))
    spread[..., directions:] = 0
    monitor = CodeMonitor(4, DIM)
    monitor.update(torch.full((2, 4000, 4), 0.25), functional.normalize(spread, dim=2), torch.tensor(1.0))
    assert monitor.summary()["embedding_rank"] == pytest.approx(directions, rel=0.02)


def test_it_is_one_over_the_mean_squared_cosine_of_different_images():
    embeddings = functional.normalize(torch.randn(2, BATCH, DIM, generator=torch.Generator().manual_seed(1)), dim=2)
    cosines = (embeddings[0] @ embeddings[0].T)[~torch.eye(BATCH, dtype=torch.bool)]
    assert rank_of(embeddings) == pytest.approx(1 / float(cosines.square().mean()), rel=1e-4)
    assert rank_of(embeddings, steps=3) == pytest.approx(rank_of(embeddings), rel=1e-6)


def test_dimensional_collapse_shows_where_codes_and_spread_do_not():
    """Two opposite points: every dimension has spread, and the codes may be balanced."""
    signs = torch.ones(BATCH)
    signs[::2] = -1
    embeddings = (signs[:, None] * functional.normalize(torch.ones(DIM), dim=0)).expand(2, -1, -1)
    monitor = CodeMonitor(4, DIM)
    monitor.update(torch.full((2, BATCH, 4), 0.25), embeddings, torch.tensor(1.0))
    assert monitor.summary()["embedding_std"] == pytest.approx(DIM**-0.5)
    assert monitor.summary()["embedding_rank"] == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(("prototypes", "dim"), [(12, 8), (30, 16), (3000, 128)])
def test_the_loss_of_random_embeddings_is_below_the_bound_of_a_guess(prototypes, dim):
    """`advice` warns where a run's loss is well above that of random embeddings and codes."""
    random = torch.Generator().manual_seed(2)
    embeddings = functional.normalize(torch.randn(4000, dim, generator=random), dim=1)
    weights = functional.normalize(torch.randn(prototypes, dim, generator=random), dim=1)
    targets = torch.randint(prototypes, (4000,), generator=random)
    loss = float(functional.cross_entropy(embeddings @ weights.T / 0.1, targets))
    bound = loss_of_a_guess(prototypes, dim, 0.1)
    assert math.log(prototypes) < loss < bound < math.log(prototypes) + 1 / 0.1
    healthy = {"mean_loss": loss, "prototypes_in_use": 1.0, "embedding_std": 0.2}
    assert advice(healthy, prototypes, "swav", dim, 0.1) == []
    (line,) = advice(healthy | {"mean_loss": 1.6 * bound}, prototypes, "swav", dim, 0.1)
    assert "worse than a guess" in line and "lower optimizer.base_lr" in line


def test_the_tiny_recipes_losses_bring_no_advice():
    """Twelve prototypes in eight dimensions: the losses of its first epochs are 4.2 to 4.9, and fall."""
    healthy = {"prototypes_in_use": 1.0, "embedding_std": 0.2}
    for loss in (4.23, 4.87, 4.88):
        assert advice(healthy | {"mean_loss": loss}, 12, "swav", 8, 0.1) == []

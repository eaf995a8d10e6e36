"""How many dimensions the embeddings lie in: the kind of collapse that neither codes nor spread show."""

import pytest
import torch
from torch.nn import functional

from model.monitor import CodeMonitor

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

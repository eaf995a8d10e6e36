"""Gradients of stage 0 are averaged in place, for all shapes and numbers of parts."""

import torch

from support.ranks import run_ranks
from training import gradient_averaging as gradients
from training.gradient_averaging import Averaging

SHAPES = ((3, 5), (), (700,), (2, 3, 4, 5), (1,))


def average(seed):
    """Two steps with the same buffer and different sets of gradients, in parts of 100 elements."""
    gradients.PART = 100
    averaging, averages = Averaging(), []
    for step, shapes in enumerate((SHAPES, SHAPES[:2])):
        generator = torch.Generator().manual_seed(10 * step + seed)
        own = [torch.randn(shape, generator=generator) for shape in shapes]
        own = [one.contiguous(memory_format=torch.channels_last) if one.ndim == 4 else one for one in own]
        averaging(own, None)
        averages.append(own)
    return averages


def test_gradients_are_the_mean_over_the_ranks_on_each():
    ranks = run_ranks([0, 1, 2], average)
    for step, shapes in enumerate((SHAPES, SHAPES[:2])):
        generators = [torch.Generator().manual_seed(10 * step + seed) for seed in (0, 1, 2)]
        for index, shape in enumerate(shapes):
            expected = sum(torch.randn(shape, generator=g) for g in generators) / 3
            for rank in ranks:
                assert torch.allclose(rank[step][index], expected, atol=1e-6)
                assert torch.equal(rank[step][index], ranks[0][step][index])

"""Each collective of a step is counted under the kind of the code that calls it."""

from pathlib import Path

import deepspeed
import torch
from torch import nn

from config.recipe import ROOT
from model.batchnorm import replace_batch_norm
from model.sinkhorn import sinkhorn
from support.ranks import run_ranks
from training.gradient_averaging import Averaging
from training.profiling.collectives import CALLERS, by_kind, counting, timed
from training.profiling.timeline import Timeline
from training.step_agreement import Agreement


def test_every_file_that_decides_a_kind_exists():
    """Otherwise the collectives of a file that moves would count as "other", without an error."""
    for path, _ in CALLERS:
        if not path.startswith(str(ROOT)):
            path = f"{Path(deepspeed.__file__).parents[1]}{path}"
        assert Path(path).exists(), path


def one_step(rank):
    """Forward, codes, backward, gradients and agreement of a small network; counts of collectives by kind."""
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    replace_batch_norm(network, 0, 2, rank)
    agreement = Agreement(world_size=2, device="cpu", every=1)
    timeline = Timeline(torch.device("cpu"))
    with counting(timeline) as calls:
        scores = network(torch.randn(6, 4, generator=torch.Generator().manual_seed(rank))).tanh()  # like cosines
        codes = sinkhorn(scores.detach(), 0.05, 3)
        loss = -(codes * scores.log_softmax(1)).sum(1).mean()
        loss.backward()
        Averaging()([parameter.grad for parameter in network.parameters()], torch.distributed.group.WORLD)
        agreement.exchange(1, loss.detach(), stop=False)
        agreement.settle()
    return {row["kind"]: row["count"] for row in by_kind(timed(timeline, calls), 1)}


def test_a_step_on_two_ranks_counts_batch_norm_codes_and_gradients_each_under_its_kind():
    for counts in run_ranks([0, 1], one_step):
        assert counts["batch_norm"] == 4  # two layers, forward and backward
        assert counts["codes"] == 3  # one for each iteration
        assert counts["gradients"] == 1  # all are small and go in one buffer
        assert counts["other"] >= 1 and set(counts) == {"batch_norm", "codes", "gradients", "other"}

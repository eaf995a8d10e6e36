"""Run on ranks by tests of a frozen backbone: which parameters move in which steps."""

import json
from functools import partial
from unittest import mock

import torch
import torch.distributed as dist

from perf.zero_ranks import Training
from support.on_ranks.zero_moves import start
from training.compiled import compile_network
from training.distributed import connected

FROZEN = 2  # steps


def moves(rank, cases, port, folder):
    """Take FROZEN steps and one more in each case; rank 0 writes losses, names that moved, and graphs to found.json.

    cases: by name. compile: the graphs are traced, and run without generating code.
    """
    from torch._dynamo.testing import CompileCounterWithBackend

    cluster, found = start(rank, cases["half"], port), {}
    with connected(cluster):
        for name, case in cases.items():
            torch._dynamo.reset()
            counter = CompileCounterWithBackend("aot_eager")
            with mock.patch("training.deepspeed_engine.compile_network", partial(compile_network, backend=counter)):
                training = Training(case, cluster)
            states, losses = [masters(training)], []
            for step in range(FROZEN + 1):
                losses.append(training.step(step)[0])
                states.append(masters(training))
            moved = [_moved(before, after) for before, after in ((states[0], states[FROZEN]), states[FROZEN:])]
            everyone = [None] * cluster.world_size
            dist.all_gather_object(everyone, moved)
            together = [sorted({key for own in everyone for key in own[part]}) for part in range(2)]
            found[name] = {"losses": losses, "frozen": together[0], "after": together[1], "graphs": counter.frame_count}
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found))


def masters(training):
    return {key: value.clone() for key, value in training.tensors().items() if key.startswith("master/")}


def _moved(before, after):
    """The parameters of which this rank holds elements that differ."""
    return [key.split("/")[1] for key in before if not torch.equal(before[key], after[key])]

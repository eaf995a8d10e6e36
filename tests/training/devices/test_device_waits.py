"""In a whole step of train.py the host waits for its device only where it logs: forward pass, codes, loss, monitor,
queue, backward, step, logging; at every ZeRO stage, in float32 and bfloat16.

Counted are reads of values, tensors and indices made of the host's values (copies to the device), and synchronizations,
DeepSpeed's included. On a real GPU each of these could drain its queue.
"""

import json
from collections import Counter
from pathlib import Path

import pytest

from perf.kill_check import make_recipe
from support.forks import run_processes
from support.on_ranks.wait_counts import ON_DEVICE, count
from training.distributed import free_port

EVERY = 4  # run.log_every
OVERLAP = "engine.deepspeed.zero_optimization.overlap_comm"
# What DeepSpeed does at stage 3 in each step: a gradient norm that is a number on the host
# (training.zero._no_gradient_norm), which waits for nothing; and it lets the host be at most two buckets of gradients
# ahead of their reduction, so that their memory does not grow. In bf16 there are two for this small network: a bucket
# of gradients that are sent in bfloat16, and one of float32.
STAGE_3 = ["tensor runtime/utils.py", "__bool__ runtime/utils.py", "_local_scalar_dense runtime/utils.py"]
AHEAD = ["synchronize zero/stage3.py"]
CASES = [
    (1, 0, "fp32", []),
    (2, 0, "bf16", []),
    (2, 1, "fp32", []),
    (2, 1, "bf16", [f"{OVERLAP}=true"]),
    (2, 2, "bf16", []),
    (2, 2, "fp32", [f"{OVERLAP}=true"]),
    (2, 3, "fp32", []),
    (2, 3, "bf16", []),
]


def waits_of_steps(folder, ranks, *changes):
    """What each of the nine steps of a run waits for."""
    recipe, port = make_recipe(folder), free_port()
    settings = f"run.epochs=1 run.log_every={EVERY} checkpoint.every=never data.max_bad_fraction=0.5".split()
    arguments = [str(recipe), f"run.directory={folder / 'run'}", *settings, *changes]
    run_processes(count, [(rank, ranks, port, arguments, folder / "steps.json") for rank in range(ranks)])
    steps = json.loads((folder / "steps.json").read_text())
    assert len(steps) == 9
    return steps


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "stage", "precision", "more"), CASES)
def test_the_host_waits_only_where_it_logs(tmp_path, ranks, stage, precision, more):
    steps = waits_of_steps(tmp_path, ranks, f"engine.stage={stage}", f"engine.precision={precision}", *more)
    for number in range(6 if stage == 3 else 2, 10):
        places = [place.split(":")[0] for place in steps[number - 1]]
        expected = STAGE_3 + AHEAD * (2 if precision == "bf16" else 1) if stage == 3 else []
        if number % EVERY == 0:  # the times of this rank, for the others, through the hosts' memory
            expected = [*expected, "tensor training/step_agreement.py"]
        if number % EVERY == 1:  # the losses of the step before
            expected = [*expected, "tolist training/step_agreement.py"]
        assert Counter(p for p in places if not p.startswith(ON_DEVICE)) == Counter(expected), (number, places)
        # in their place the device's stream waits for the one that reduces gradients, once, after the last reduction
        of_deepspeed = f"{ON_DEVICE} zero/stage3.py" if stage == 3 else f"{ON_DEVICE} zero/stage_1_and_2.py"
        order = [place for place in places if place in (of_deepspeed, f"{ON_DEVICE} training/zero.py")]
        own_streams = stage == 3 or more
        assert order[-1:] == ([f"{ON_DEVICE} training/zero.py"] if own_streams else [])
        assert order[:-1] == [of_deepspeed] * len(order[:-1]) and bool(order[:-1]) == bool(own_streams)


@pytest.mark.slow
def test_with_offload_the_host_waits_for_the_gradients_that_it_reads(tmp_path):
    changes = "engine.stage=1", "engine.precision=fp32", "engine.offload=true", f"{OVERLAP}=true"
    steps = waits_of_steps(tmp_path, 2, *changes)
    for step in steps[1:]:
        assert "synchronize zero/stage_1_and_2.py" in {place.split(":")[0] for place in step}


def test_what_the_host_waits_for_is_counted():
    """item, a condition on a tensor, nonzero; a tensor and an index made of a list."""
    import torch

    from support.on_ranks.wait_counts import Calls, Operations

    seen = []
    with Calls(seen), Operations(seen):
        values = torch.ones(3)
        values.sum().item()
        if values[0] > 0:
            values.nonzero()
        values[[0, 2]]
        torch.tensor([1.0])
    assert len(seen) >= 5
    assert {"tensor", "__getitem__", "nonzero"} <= {wait.split(" ")[0] for wait in seen}
    assert all(Path(__file__).name in wait for wait in seen)

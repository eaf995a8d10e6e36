"""In a whole step of train.py the host waits for its device only where it logs: forward pass, codes, loss, monitor,
queue, backward, step, logging; at every ZeRO stage, in float32 and bfloat16.

Counted are reads of values, tensors and indices made of the host's values (copies to the device), and synchronizations,
DeepSpeed's included. On a real GPU each of these could drain its queue.
"""

import json
from pathlib import Path

import pytest

from perf.kill_check import make_recipe
from support.forks import run_processes
from support.on_ranks.wait_counts import count
from training.distributed import free_port

EVERY = 4  # run.log_every
OVERLAP = "engine.deepspeed.zero_optimization.overlap_comm"
# DeepSpeed's own waits, which no setting avoids, except for overlap_comm=false at stages 1 and 2: for the communication
# that overlapped the backward pass, and at stage 3 for the small parameters that are gathered after a step. In its
# first steps stage 3 records the order in which it gathers the others.
OVERLAPPED = {"synchronize zero/stage_1_and_2.py"}
STAGE_3 = {
    *("synchronize zero/stage3.py", "synchronize zero/partition_parameters.py"),
    # a gradient norm that is a number on the host (training.zero._no_gradient_norm): no wait
    *("tensor runtime/utils.py", "__bool__ runtime/utils.py", "_local_scalar_dense runtime/utils.py"),
}
CASES = [
    (1, 0, "fp32", [], set()),
    (2, 0, "bf16", [], set()),
    (2, 1, "fp32", [], set()),
    (2, 1, "bf16", [f"{OVERLAP}=true"], OVERLAPPED),
    (2, 2, "bf16", [], set()),
    (2, 3, "fp32", [], STAGE_3),
    (2, 3, "bf16", [], STAGE_3),
]


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "stage", "precision", "more", "own"), CASES)
def test_the_host_waits_only_where_it_logs(tmp_path, ranks, stage, precision, more, own):
    recipe, port = make_recipe(tmp_path), free_port()
    settings = f"run.epochs=1 run.log_every={EVERY} checkpoint.every=never data.max_bad_fraction=0.5".split()
    arguments = [str(recipe), f"run.directory={tmp_path / 'run'}", f"engine.stage={stage}", *settings, *more]
    arguments.append(f"engine.precision={precision}")
    run_processes(count, [(rank, ranks, port, arguments, tmp_path / "steps.json") for rank in range(ranks)])
    steps = json.loads((tmp_path / "steps.json").read_text())
    assert len(steps) == 9
    for number in range(6 if stage == 3 else 2, 10):
        waits = [wait.split(":")[0] for wait in steps[number - 1]]
        expected = []
        if number % EVERY == 0:  # the times of this rank, for the others, through the hosts' memory
            expected = ["tensor training/step_agreement.py"]
        if number % EVERY == 1:  # the losses of the step before
            expected = ["tolist training/step_agreement.py"]
        assert [wait for wait in waits if wait not in own] == expected, (number, steps[number - 1])
        assert own != OVERLAPPED or set(waits) >= OVERLAPPED, "no longer so: adapt docs/precision_and_zero.md"


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

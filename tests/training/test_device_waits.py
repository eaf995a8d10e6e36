"""The loop reads values from the device once every run.log_every steps: the ranks' losses in that step."""

import json
from pathlib import Path

import pytest

from perf.kill_check import make_recipe
from support.forks import run_processes
from support.on_ranks.wait_counts import count
from training.distributed import free_port


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 1), (2, 2), (2, 3)])
def test_a_step_reads_nothing_unless_the_previous_step_is_logged(tmp_path, ranks, stage):
    recipe, port = make_recipe(tmp_path), free_port()
    settings = "run.epochs=2 run.log_every=4 checkpoint.every=never data.max_bad_fraction=0.5".split()
    arguments = [str(recipe), f"run.directory={tmp_path / 'run'}", f"engine.stage={stage}", *settings]
    run_processes(count, [(rank, ranks, port, arguments, tmp_path / "steps.json") for rank in range(ranks)])
    steps = json.loads((tmp_path / "steps.json").read_text())
    assert len(steps) == 18
    # In its first steps stage 3 records the order in which it gathers parameters. Its gradient norm is a number on the
    # host (training.zero._no_gradient_norm), not read from the device.
    first, own = (
        (5, {"__bool__ runtime/utils.py", "_local_scalar_dense runtime/utils.py"}) if stage == 3 else (1, set())
    )
    for step in (*range(first, 9), *range(10, 18)):  # an epoch's first step has the reads between the epochs too
        reads = [read.split(":")[0] for read in steps[step]]
        logged = ["tolist training/step_agreement.py"] if step % 4 == 0 else []  # steps[4] is the fifth
        assert [read for read in reads if read not in own] == logged, (step, steps[step])


def test_reads_of_values_are_counted(tmp_path):
    """item, a condition on a tensor, nonzero."""
    import torch

    from support.on_ranks.wait_counts import Calls, Operations

    reads = []
    with Calls(reads), Operations(reads):
        values = torch.ones(3)
        values.sum().item()
        if values[0] > 0:
            values.nonzero()
    assert len(reads) >= 3
    assert all(Path(__file__).name in read for read in reads)

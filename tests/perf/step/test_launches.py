"""perf.step.launches: graphs of a compiled step, kernels, copies and waits of an eager one, and kernels of LARS."""

import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from config.recipe import ROOT
from perf.step.launches import PHASES, rows_of, table
from perf.step.launches_worker import Launches, graphs_of, lars_of, step_of, synchronizations_of
from support.forks import run_processes
from support.programs import run_module

TINY = {"block": "basic", "layers": [1, 1], "base_width": 16}  # with 8, backward of channels-last crashes on CPUs
NORMS = 6  # of the backbone: stem, two blocks of two, one shortcut


@pytest.mark.slow(seconds=10)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_backbone_at_two_resolutions_and_head_are_three_graphs(checkpointing):
    found = graphs_of("resnet", TINY, checkpointing)
    assert found.pop("operations") > 20
    assert found == {"graphs": 3, "dynamic": 0, "recompiles": 0, "breaks": 0}


def test_lars_launches_a_kernel_for_each_group_and_two_for_the_norms():
    found = lars_of("resnet", TINY)
    kernels = found["with kernels"]
    assert (kernels["_squares"], kernels["_sums"], kernels["_update"]) == (1, 1, 2)  # the prototypes are a group
    parameters = found["without kernels"]["_foreach_addcmul_"] // 2
    assert parameters > 20 and found["without kernels"].total() > 2 * parameters
    assert kernels.total() < 10


@pytest.mark.slow(seconds=10)
def test_a_step_copies_nothing_between_host_and_device_and_launches_all_its_phases():
    found = step_of("resnet", TINY)
    assert tuple(found) == PHASES
    assert all(counts["launches"] > 0 and counts["copies"] == counts["waits"] == 0 for counts in found.values())
    # a batch norm launches at least three kernels each way, the backbone's at both resolutions
    assert min(found[name]["launches"] for name in ("forward", "backward")) > 3 * (2 * NORMS + 1)


def test_kernels_copies_and_waits_are_told_apart():
    with FakeTensorMode(allow_non_fake_inputs=True):
        device, host = torch.ones(4, 2, device="cuda"), torch.ones(4, 2)
        weights = [torch.ones(3, device="cuda") for _ in range(120)]
        with Launches() as counting:
            device + 1  # a kernel
            device.view(8)  # nothing
            host + 1  # nothing of the device
            device[[2, 0]]  # a kernel, and a copy that the host waits for
            device.copy_(host, non_blocking=True)  # a copy
            device.cpu()  # a copy that the host waits for
            torch._foreach_mul_(weights, 2.0)  # two kernels
    assert counting.counts == {"add": 1, "index": 1, "_foreach_mul_": 2}
    assert (counting.copies, counting.waits) == (3, 2)


def count_synchronizations(file):
    file.write_text(json.dumps(synchronizations_of()))


@pytest.mark.slow
def test_deepspeed_synchronizes_in_no_step(tmp_path):
    run_processes(count_synchronizations, [(tmp_path / "counts.json",)])
    assert json.loads((tmp_path / "counts.json").read_text()) == {"stage 0": 0, "stage 1": 0}


def test_the_table_has_a_column_for_each_checkout():
    step = {name: {"launches": 10, "copies": 0, "waits": 0} for name in PHASES}
    step["codes"] = {"launches": 10, "copies": 2, "waits": 1}
    graphs = {"graphs": 3, "dynamic": 0, "recompiles": 0, "breaks": 0, "operations": 4202}
    counts = {"graphs": graphs, "step": step, "synchronizations": {"stage 0": 3.0}}
    base = counts | {"lars": {"without kernels": {"mul": 300, "add": 98}}}
    now = counts | {"lars": {"without kernels": {"mul": 400}, "with kernels": {"_update": 2}}}
    lines = table({"base": rows_of(base), "now": rows_of(now)}).splitlines()
    assert lines[0] == "| in a step | base | now |"
    assert {"| launches: all | 448 | 52 |", "| copies between host and device | 2 | 2 |"} < set(lines)
    assert {"| compiled: operations in graphs | 4,202 | 4,202 |", "| waits between host and device | 1 | 1 |"} < set(
        lines
    )
    assert "| synchronizations by DeepSpeed, stage 0 | 3 | 3 |" in lines


def test_a_base_that_is_no_checkout_is_one_line(tmp_path):
    done = run_module("perf.step.launches", "--base", tmp_path, folder=ROOT)
    assert done.returncode == 2 and f"--base={tmp_path}: expected a checkout of swave" in done.stderr.splitlines()[-1]

"""perf.step.launches: graphs of a compiled step, and kernels of LARS."""

import pytest

from perf.step.launches import count_graphs, count_lars

TINY = {"block": "basic", "layers": [1, 1], "base_width": 16}  # with 8, backward of channels-last crashes on CPUs


@pytest.mark.slow(seconds=10)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_backbone_at_two_resolutions_and_head_are_three_graphs(checkpointing):
    found = count_graphs("resnet", TINY, checkpointing)
    assert found.pop("operations") > 20
    assert found == {"graphs": 3, "dynamic": 0, "recompiles": 0, "breaks": 0}


def test_lars_launches_a_kernel_for_each_group_and_two_for_the_norms():
    found = count_lars("resnet", TINY)
    kernels = found["with kernels"]
    assert (kernels["_squares"], kernels["_sums"], kernels["_update"]) == (1, 1, 2)  # the prototypes are a group
    parameters = found["without kernels"]["_foreach_addcmul_"] // 2
    assert parameters > 20 and found["without kernels"].total() > 2 * parameters
    assert kernels.total() < 10

"""Nothing touches a GPU that is not the rank's."""

import re

import pytest
import torch

from config.recipe import ROOT
from training.distributed import Cluster, deepspeed_environment

FOLDERS = ("common", "evaluation", "export", "launch", "model", "perf", "pipeline", "training")
ALL_SEEN = Cluster(rank=11, world_size=16, local_rank=3, local_world_size=8)


@pytest.mark.parametrize(
    ("device", "environment", "local_rank"),
    [
        (torch.device("cuda", 3), {}, {"LOCAL_RANK": "3"}),
        (torch.device("cuda", 0), {}, {"LOCAL_RANK": "0"}),  # each process sees its own GPU only
        (torch.device("cpu"), {}, {"LOCAL_RANK": "3"}),
        (
            torch.device("cuda", 0),
            {"OMPI_COMM_WORLD_LOCAL_RANK": "3"},
            {"LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
        ),
    ],
)
def test_deepspeed_and_nccl_get_the_number_of_the_ranks_gpu(device, environment, local_rank):
    expected = {"RANK": "11", "WORLD_SIZE": "16", **local_rank}
    assert deepspeed_environment(ALL_SEEN, device, environment) == expected


def test_no_line_names_a_gpu_without_its_number():
    """`torch.device("cuda")` and `.cuda()` mean the thread's current GPU, which is number 0 in a new thread."""
    unnumbered = re.compile(r"""torch\.device\(["']cuda["']\)|\.cuda\(\)|device=["']cuda["']|\.to\(["']cuda["']\)""")
    found = [
        f"{path}:{number}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if unnumbered.search(line) and "FakeTensorMode" not in line  # fake tensors are on no GPU
    ]
    assert found == []

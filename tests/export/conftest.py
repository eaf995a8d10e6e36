"""Small trained networks for tests of exports."""

import pytest
import torch

from support.exports import make_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Small networks, each built once: backbone, options, crop size -> run's directory, network in eval mode."""
    store, runs = tmp_path_factory.mktemp("store") / "store", {}
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)

    def make(backbone, options, size):
        if backbone not in runs:
            runs[backbone] = make_run(tmp_path_factory.mktemp("run"), backbone, options, size)
        return runs[backbone]

    yield make
    torch.distributed.destroy_process_group()

"""perf.step.waits, which gpu-check counts waits with: each way to wait for the device is seen once, also on a CPU."""

from contextlib import suppress
from pathlib import Path

import pytest
import torch
from deepspeed.accelerator import get_accelerator

from perf.step.waits import count_waits

WAYS = {
    "DeepSpeed's accelerator": lambda: get_accelerator().synchronize(),
    "torch.accelerator": lambda: torch.accelerator.synchronize(),
    "torch.cuda": lambda: torch.cuda.synchronize(),
    "an event": lambda: torch.cuda.Event().synchronize(),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_to_wait_is_counted_once_at_its_line(way):
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    line = WAYS[way].__code__.co_firstlineno

    def step():
        with suppress(RuntimeError, AssertionError):  # torch's, where there is no device to wait for
            WAYS[way]()

    assert count_waits(step, device) == [f"{Path(__file__).name}:{line}"]


def test_what_counts_is_put_back():
    before = torch.accelerator.synchronize, torch.cuda.synchronize, type(get_accelerator()).synchronize
    with pytest.raises(ZeroDivisionError):
        count_waits(lambda: 1 / 0, torch.device("cpu"))
    assert (torch.accelerator.synchronize, torch.cuda.synchronize, type(get_accelerator()).synchronize) == before

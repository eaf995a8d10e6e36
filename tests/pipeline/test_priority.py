"""Threads that only compute leave the cores to the thread that trains."""

import os
import threading
from pathlib import Path

import pytest

from pipeline.crops import Blur, Crops, Jitter, View
from pipeline.dataset.open import open_dataset
from pipeline.loader import Loader
from pipeline.priority import NICE
from support.photos import flat_colors, write_folder

CROPS = Crops(views=(View(16, (0.3, 1.0)),), jitter=Jitter(saturation=0, hue=0), grayscale=0.0, blur=Blur(0.0))
THREADS = 3


def threads_by_nice():
    """The threads of this process, by their value of nice."""
    threads = {}
    for task in Path("/proc/self/task").iterdir():
        nice = int((task / "stat").read_text().rpartition(")")[2].split()[16])
        threads.setdefault(nice, set()).add(int(task.name))
    return threads


@pytest.mark.parametrize("nice", [0, NICE])
@pytest.mark.parametrize("backend", ["ffcv", "dali"])
def test_only_threads_that_compute_have_a_lower_priority_and_only_for_a_gpu(backend, nice, tmp_path):
    table = open_dataset(write_folder(tmp_path / "images", flat_colors(24, side=20)), tmp_path / "tables", workers=1)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    before, others = threads_by_nice(), set(threading.enumerate())
    gpu = 0 if nice else None
    loader = Loader(table, CROPS, backend=backend, seed=1, global_batch=8, threads=THREADS, pinned_for=gpu)
    loader.device_id = loader.pinned_for = None  # the test runs without that GPU
    try:
        next(iter(loader))
        during = threads_by_nice()
        started = set(threading.enumerate()) - others
        pool = {thread.native_id for thread in started if thread.name.startswith("kernel")}
    finally:
        loader.close()
    assert os.getpriority(os.PRIO_PROCESS, 0) == own
    lowered = during.get(own + NICE, set()) - before.get(own + NICE, set())
    assert pool <= (lowered if nice else during[own])
    # DALI starts all its threads, the kernel's pool only as many as a batch keeps busy.
    assert len(pool) > 0 if backend == "ffcv" else len(lowered) > THREADS or not nice
    assert nice or not lowered
    assert during[own] - before[own]  # the loader's thread, and those that prepare and read

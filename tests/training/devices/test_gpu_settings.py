"""What a process sets before it uses its GPU: cuDNN's benchmark, the allocator of memory, the loader's stream."""

import json
import subprocess
import sys
import traceback
from contextlib import nullcontext

import pytest
import torch

from config.recipe import ROOT
from perf.ranks import run_ranks
from training.distributed import Cluster, allocator_settings, connected

DEFAULT = "expandable_segments:True"
OWN = "max_split_size_mb:64"
OLD, NEW = "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, {NEW: DEFAULT}), ({OLD: OWN}, {}), ({NEW: OWN}, {}), ({OLD: OWN, NEW: DEFAULT}, {}), ({NEW: ""}, {})],
)
def test_memory_grows_in_segments_unless_the_user_chose_something_else(environment, expected):
    assert allocator_settings(environment) == expected


DEVICE = f"""
import os, torch
from training.distributed import Cluster
Cluster().device()
print(os.environ.get("{OLD}"), os.environ.get("{NEW}"), torch.cuda.is_initialized())
os.environ["{OLD}"] = os.environ["{NEW}"] = "unknown_key:1"
try:
    torch.cuda.memory._snapshot()
except (RuntimeError, ValueError) as error:
    print(error)
"""


@pytest.mark.parametrize("own", [{}, {OLD: OWN}])
def test_the_allocator_is_set_before_torch_reads_it(monkeypatch, own):
    """A value set after `device()` is the one that torch reads: it refuses the unknown key."""
    for name in (OLD, NEW):
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", DEVICE], cwd=ROOT, capture_output=True, text=True, check=True)
    found, refused = done.stdout.splitlines()
    assert found == f"{own.get(OLD)} {own.get(NEW, None if own else DEFAULT)} False"
    assert "unknown_key" in refused


def write_flags(_rank, folder):
    """As a rank: cuDNN's benchmark, its TF32 and that of matrix products, before and within a run's process group."""
    flags = []
    for context in (nullcontext(), connected(Cluster())):
        with context:
            products = torch.backends.cuda.matmul.allow_tf32
            flags.append([torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, products])
    (folder / "flags.json").write_text(json.dumps(flags))


@pytest.mark.slow
def test_training_and_benchmarks_let_cudnn_choose_and_convolutions_alone_round_to_tf32(tmp_path):
    """All of them work within `connected`, which sets the flags; docs/precision_and_zero.md says the same of TF32."""
    run_ranks(write_flags, 1, tmp_path)
    assert json.loads((tmp_path / "flags.json").read_text()) == [[False, True, False], [True, True, False]]
    for program in ("train.py", "perf/step/device_step.py", "perf/step/ranks.py"):
        assert "with connected(cluster" in (ROOT / program).read_text(), program


def test_the_loader_asks_for_a_stream_of_high_priority():
    """Without a GPU the stream cannot be made; what was asked for stands in the call that failed."""
    from pipeline.backends.device_color import _stream

    device = torch.device("cuda", 0)
    if torch.cuda.is_available():
        assert _stream(device).priority < torch.cuda.Stream(device).priority
        return
    with pytest.raises((RuntimeError, AssertionError)) as caught:
        _stream(device)
    (call,) = (f.f_locals for f, _ in traceback.walk_tb(caught.tb) if f.f_code is torch.cuda.Stream.__new__.__code__)
    assert (call["device"], call["priority"]) == (device, -1)  # below 0 is high, and 0 is a usual stream's

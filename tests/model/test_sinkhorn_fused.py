"""The CUDA kernels of the codes agree with model.sinkhorn, on a GPU and in Triton's interpreter on the CPU."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from config.recipe import ROOT
from model.sinkhorn import sinkhorn

pytest.importorskip("triton")

IN_THE_INTERPRETER = """
import torch
from model.sinkhorn import sinkhorn
from model import sinkhorn_fused
calls = []
def counted(sums):
    calls.append(tuple(sums.shape))
    return sums
sinkhorn_fused.PROGRAMS = 4  # so that programs take several samples, and the last of them fewer
cases = [((2, 5, 30), 3, torch.float32), ((7, 33), 1, torch.bfloat16), ((1, 1, 1), 2, torch.float16)]
cases += [((2, 40, 3), 50, torch.float32)]  # sums that would grow by 40 / 3 an iteration
for shape, iterations, dtype in cases:
    scores = (torch.rand(shape) * 2 - 1).to(dtype)
    assert sinkhorn_fused.fits(scores)
    calls.clear()
    codes = sinkhorn_fused.fused_codes(scores, 0.05, iterations, counted)
    assert len(calls) == iterations, calls
    torch.testing.assert_close(codes, sinkhorn(scores, 0.05, iterations), rtol=0, atol=2e-6)
print("agree")
"""


@pytest.mark.slow(seconds=5)
def test_kernels_agree_in_tritons_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_THE_INTERPRETER],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "agree\n", done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("shape", [(2, 64, 3000), (2, 1000, 300), (33, 10_000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_agree_on_a_gpu(shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.sinkhorn.with_kernels", True)
    scores = torch.from_numpy(np.random.RandomState(0).uniform(-1, 1, shape)).to(dtype)
    codes = sinkhorn(scores.cuda(), 0.05, 3, check=False)
    torch.testing.assert_close(codes.cpu(), sinkhorn(scores, 0.05, 3), rtol=0, atol=5e-6)
    assert torch.equal(codes, sinkhorn(scores.cuda(), 0.05, 3, check=False))

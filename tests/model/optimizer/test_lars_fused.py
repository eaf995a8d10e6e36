"""LARS's CUDA kernels take the steps of model.optimizer.lars, on a GPU and in Triton's interpreter on the CPU."""

import os
import subprocess
import sys

import pytest
import torch

from config.recipe import ROOT
from model.optimizer.lars import LARS
from model.optimizer.segments import Layout, Segment

pytest.importorskip("triton")
from model.optimizer.lars_fused import FusedLARS

IN_THE_INTERPRETER = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from model.optimizer import lars_fused
from test_lars_fused import compare
lars_fused.CHUNK, lars_fused.BLOCK = 48, 16  # so that parameters have several chunks, and the last is shorter
compare("cpu", lars_fused.FusedLARS())
print("agree")
"""


def whole(device):
    """Parameters as at stage 0, two of them channels-last, and no layout of their own."""
    shapes = [[(7, 3, 5, 5), (40,), (8, 6, 1, 1), (1,)], [(33,), (5,)], [(12, 10)]]
    groups = [[torch.randn(shape, device=device) for shape in group] for group in shapes]
    groups[0][0] = groups[0][0].contiguous(memory_format=torch.channels_last)
    groups[0][1].zero_()  # has no trust ratio
    return groups, None


def flat(device):
    """ZeRO's flat partitions with slices of parameters, and padding that is no number."""
    shapes, numbers = [(20, 10), (70,), (30,), (25,), (8, 10)], [[0, 1, 2], [3], [4]]
    segments = [
        [Segment(0, 40, 3, 160), Segment(1, 0, 163, 70), Segment(2, 0, 240, 5)],
        [Segment(3, 0, 0, 25)],
        [Segment(4, 0, 2, 80)],
    ]
    groups = []
    for own in segments:
        tensor = torch.full((own[-1].offset + own[-1].length + 4,), float("nan"), device=device)
        for s in own:
            tensor[s.offset : s.offset + s.length] = torch.randn(s.length, device=device)
        groups.append([tensor])
    tensors = {group[0]: own for group, own in zip(groups, segments, strict=True)}
    return groups, Layout([str(n) for n in range(5)], shapes, numbers, tensors)


def optimizer_of(groups, layout):
    options = [{}, {"trust_ratio": False, "weight_decay": 0.0}, {"unit_rows": True}]
    lars = LARS([{"params": group, **more} for group, more in zip(groups, options, strict=True)], lr=0.1)
    lars.layout = layout
    for group in lars.param_groups:
        group["weight_decay"] = group["weight_decay"] and 0.01
    return lars


def compare(device, kernels, steps=4):
    """Steps with the kernels and without, from the same start; the prototypes are released after two of them."""
    for case in (whole, flat):
        torch.manual_seed(0)
        groups, layout = case(device)
        torch.manual_seed(0)
        others, other_layout = case(device)
        pairs = [pair for both in zip(groups, others, strict=True) for pair in zip(*both, strict=True)]
        fused, plain = optimizer_of(groups, layout), optimizer_of(others, other_layout)

        def fitting(tensors, momenta):
            assert kernels.fits(tensors, momenta)
            return kernels

        fused._fused = fitting
        plain._fused = lambda *_: False
        for step in range(steps):
            fused.param_groups[2]["frozen"] = plain.param_groups[2]["frozen"] = step < 2
            for own, other in pairs:
                own.grad = torch.randn_like(own)
                own.grad = torch.where(own.isnan(), own, own.grad)  # padding
                other.grad = own.grad.clone()
            if case is whole:
                groups[0][3].grad, others[0][3].grad = None, None  # a parameter that takes no part
                groups[0][2].grad = groups[0][2].grad.as_strided((8, 6, 1, 1), (6, 1, 6, 6))  # as cuDNN gives it
                groups[0][2].grad *= step > 0
                others[0][2].grad *= step > 0
            for lars in (fused, plain):
                for group in lars.param_groups:
                    group["lr"] = 0.1 / (1 + step)
                lars.step()
            torch.testing.assert_close(fused.trust_ratios, plain.trust_ratios)
            for own, other in pairs:
                torch.testing.assert_close(own, other, rtol=2e-6, atol=2e-7, equal_nan=True)
                assert own.stride() == other.stride()
                if own.grad is not None and own in fused.state:
                    momenta = (lars.state[p]["momentum_buffer"] for lars, p in ((fused, own), (plain, other)))
                    torch.testing.assert_close(*momenta, rtol=2e-6, atol=2e-7, equal_nan=True)


@pytest.mark.slow(seconds=5)
def test_kernels_agree_in_tritons_interpreter():
    done = subprocess.run(
        [sys.executable, "-c", IN_THE_INTERPRETER],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "agree\n", done.stderr


def test_kernels_refuse_what_they_would_change_wrongly():
    p = torch.zeros(4, 6)
    p.grad, momentum = torch.zeros(4, 6), torch.zeros(4, 6)
    kernels = FusedLARS()
    assert kernels.fits([p], [momentum])
    assert not kernels.fits([p], [torch.zeros(6, 4).T])  # another order in memory
    assert not kernels.fits([p], [momentum.double()])
    wide = torch.zeros(4, 12)[:, :6]
    wide.grad = torch.zeros(4, 12)[:, :6]
    assert not kernels.fits([wide], [torch.zeros(4, 12)[:, :6]])  # with gaps


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_kernels_agree_on_a_gpu():
    from model.optimizer import lars_fused

    assert lars_fused.runs_on(torch.device("cuda"))
    compare("cuda", lars_fused.FusedLARS())


@pytest.mark.slow(seconds=5)
def test_kernels_compile_for_nvidias_gpus():
    """To machine code, which needs no GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from model.optimizer import lars_fused as fused

    integers = {"tensors": "i32", "chunks": "i32", "parameters": "i32", "start": "i32"}
    types = {"addresses": "*i64", "table": "*i64", "spans": "*i64", "partial": "*fp64", "squares": "*fp64", **integers}
    sizes = {"CHUNK": fused.CHUNK, "BLOCK": fused.BLOCK, "LONGEST": 300}
    for kernel, trust in ((fused._squares, None), (fused._sums, None), (fused._update, True), (fused._update, False)):
        signature, constants = {}, {}
        for name in kernel.arg_names:
            signature[name] = "constexpr" if name.isupper() else types.get(name, "fp32")
            if name.isupper():
                constants[name] = trust if name == "TRUST" else sizes[name]
        code = compile(ASTSource(kernel, signature, constexprs=constants), target=GPUTarget("cuda", 90, 32))
        assert len(code.asm["cubin"]) > 1000

"""Batch norm by torch's fused CUDA functions equals that on the CPU, and never waits for the device."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.batchnorm import BatchNorm, replace_batch_norm, synchronized_batch_norm
from support.rounded_values import samples


@pytest.fixture
def group_of_one(tmp_path: Any) -> Any:
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def normalized(
    device: str, shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, affine: bool, group: Any
) -> dict[str, Tensor]:
    """Calls `synchronized_batch_norm` directly, because the module uses torch for a group of one rank."""
    x, dy = (torch.from_numpy(values).to(dtype).to(device) for values in samples(shape, dtype))
    x = x.contiguous(memory_format=layout).requires_grad_()
    wide = torch.promote_types(dtype, torch.float32)
    weight, bias = (torch.linspace(0.5, 1.5, shape[1], device=device, dtype=wide).requires_grad_() for _ in range(2))
    mean, var = torch.zeros_like(weight).detach(), torch.ones_like(weight).detach()
    running = (mean, var) if affine else (None, None)
    parameters = (weight, bias) if affine else (None, None)
    out = synchronized_batch_norm(x, *parameters, *running, 0.1, 1e-5, group)
    out.backward(dy)
    assert x.grad is not None
    assert out.is_contiguous(memory_format=layout) and x.grad.is_contiguous(memory_format=layout)
    actual = {"output": out.detach(), "input gradient": x.grad}
    if affine:
        assert weight.grad is not None and bias.grad is not None
        actual |= {"weight gradient": weight.grad, "bias gradient": bias.grad, "mean": mean, "var": var}
    return actual


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_on_a_gpu_it_computes_the_same_as_on_the_cpu(dtype: torch.dtype, affine: bool, group_of_one: Any) -> None:
    cases = [
        ((70, 5, 32, 32), torch.channels_last),  # more values per channel than half can count
        ((70, 5, 32, 32), torch.contiguous_format),
        ((8, 5, 7), torch.contiguous_format),
        ((8, 5), torch.contiguous_format),
    ]
    tolerance = 4 * max(torch.finfo(dtype).eps, 1e-12) if dtype != torch.float32 else 1e-5
    for shape, layout in cases:
        normalized("cuda", shape, dtype, layout, affine, group_of_one)  # makes the communicator
        expected = normalized("cpu", shape, dtype, layout, affine, group_of_one)
        actual = normalized("cuda", shape, dtype, layout, affine, group_of_one)
        for name, value in expected.items():
            assert actual[name].dtype == value.dtype
            error = (actual[name].cpu().double() - value.double()).abs().max()
            assert error < tolerance * value.double().abs().max(), (shape, layout, name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_nothing_waits_for_the_device(group_of_one: Any) -> None:
    x = torch.randn(8, 5, 6, 6, device="cuda", dtype=torch.float16, requires_grad=True)
    norms = [BatchNorm(5, device="cuda"), nn.BatchNorm2d(5, device="cuda")]
    replace_batch_norm(norms[1], 0, 1, 0)

    def step() -> None:
        values = [None, None, norms[0].running_mean, norms[0].running_var]
        (synchronized_batch_norm(x, *values, 0.1, 1e-5, group_of_one).sum() + sum(n(x).sum() for n in norms)).backward()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")

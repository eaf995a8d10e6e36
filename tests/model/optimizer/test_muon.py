"""Muon: its step against the formula and torch's own, which parameters are its matrices, and slices of them."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from config.recipe import default_config
from model.backbone import build_backbone
from model.optimizer import muon
from model.optimizer.build import build_optimizer, set_step
from model.optimizer.muon import Muon, orthogonal
from model.optimizer.segments import Layout, Segment
from model.swav import SwAV

VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 3, "num_heads": 2}
SHAPES = ((6, 4), (4, 6), (6, 4), (5, 3, 2, 2))


def matrices(seed, dtype=torch.float64):
    noise = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=noise, dtype=dtype) for shape in SHAPES]


def optimizer_of(parameters, **settings):
    return Muon([{"params": parameters, "orthogonal": True}], lr=0.02, betas=(0.9, 0.999), **settings)


def polynomial(values):
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return values


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_three_steps_are_those_of_the_formula(decay):
    parameters = [torch.nn.Parameter(matrix) for matrix in matrices(0)]
    expected = [p.detach().numpy().reshape(len(p), -1).copy() for p in parameters]
    momenta = [np.zeros_like(p) for p in expected]
    optimizer = optimizer_of(parameters, weight_decay=decay)
    for step in range(3):
        for number, (p, gradient) in enumerate(zip(parameters, matrices(step + 1), strict=True)):
            p.grad = gradient
            g = gradient.numpy().reshape(len(gradient), -1)
            momenta[number] = 0.95 * momenta[number] + 0.05 * g
            u, s, v = np.linalg.svd(0.95 * momenta[number] + 0.05 * g, full_matrices=False)
            direction = u * polynomial(s / np.sqrt((s**2).sum())) @ v
            expected[number] *= 1 - 0.02 * decay
            expected[number] -= 0.02 * 0.2 * math.sqrt(max(g.shape)) * direction
        optimizer.step()
    for p, values in zip(parameters, expected, strict=True):
        np.testing.assert_allclose(p.detach().numpy().reshape(len(p), -1), values, rtol=0, atol=1e-12)


def test_a_step_is_torchs():
    """Up to bfloat16, in which torch's Muon orthogonalizes on every device."""
    own, theirs = ([torch.nn.Parameter(m.clone()) for m in matrices(0, torch.float32)[:3]] for _ in range(2))
    settings = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}
    optimizers = [
        Muon([{"params": own, "orthogonal": True}], **settings),
        torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **settings),
    ]
    starts = [p.detach().clone() for p in own]
    for step in range(3):
        for parameters, optimizer in zip((own, theirs), optimizers, strict=True):
            for p, gradient in zip(parameters, matrices(step + 1, torch.float32), strict=False):
                p.grad = gradient.clone()
            optimizer.step()
    for start, p, other in zip(starts, own, theirs, strict=True):
        assert (p - other).norm() < 0.05 * (p - start).norm()


@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (16, 16), (1, 9)])
def test_singular_values_come_near_1(shape):
    (step,) = orthogonal([torch.randn(shape, generator=torch.Generator().manual_seed(0))])
    values = torch.linalg.svdvals(step)
    assert values[values > 0.5].min() > 0.65 and values.max() < 1.25 and (values > 0.5).float().mean() > 0.8


def test_bfloat16_which_a_gpu_takes_changes_a_step_by_less_than_5_percent():
    exact = orthogonal(matrices(0)[:3])
    for step, rounded in zip(exact, orthogonal([matrix.bfloat16() for matrix in matrices(0)[:3]]), strict=True):
        assert rounded.dtype == torch.bfloat16 and (rounded - step).norm() < 0.05 * step.norm()


def test_zero_stays_zero_and_the_ends_of_float32_are_no_nan():
    for size in (0.0, 1e-38, 1e-20, 1e18):
        (step,) = orthogonal([torch.eye(3) * size])
        assert step.isfinite().all() and (size > 0) == bool(step.any()), size


@pytest.mark.parametrize("bucket", [1, 30, 10**6])
def test_slices_take_the_step_of_whole_matrices(bucket, monkeypatch):
    """The flat partitions of two ranks, which are threads here, cut through a matrix."""
    whole = [torch.nn.Parameter(matrix) for matrix in matrices(0)]
    start, sizes, shapes = flat(whole), [p.numel() for p in whole], [p.shape for p in whole]
    cut = sizes[0] + 7
    parts = [torch.nn.Parameter(part.clone()) for part in (start[:cut], start[cut:])]
    segments = [
        [Segment(0, 0, 0, sizes[0]), Segment(1, 0, sizes[0], 7)],
        [Segment(1, 7, 0, sizes[1] - 7), Segment(2, 0, sizes[1] - 7, sizes[2]),
         Segment(3, 0, sizes[1] - 7 + sizes[2], sizes[3])],
    ]  # fmt: skip
    monkeypatch.setattr(muon, "BUCKET", bucket)
    optimizer, ranks = optimizer_of(whole), [optimizer_of([p]) for p in parts]
    barrier, given = threading.Barrier(2, timeout=60), [torch.empty(0)] * 2
    for rank, own in enumerate(ranks):
        own.layout = Layout("abcd", shapes, [range(4)], {parts[rank]: segments[rank]}, partitioned=True)

        def add_up(values, rank=rank):
            given[rank] = values
            barrier.wait()
            total = given[0] + given[1]
            barrier.wait()
            return total

        monkeypatch.setattr(own.layout, "add_up", add_up)
    for step in range(3):
        for p, gradient in zip(whole, matrices(step + 1), strict=True):
            p.grad = gradient
        parts[0].grad, parts[1].grad = flat(matrices(step + 1)).split([cut, len(start) - cut])
        optimizer.step()
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(Muon.step, ranks))
    torch.testing.assert_close(torch.cat(parts), flat(whole), rtol=0, atol=1e-12)


def flat(tensors):
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def settings_of(**settings):
    return OmegaConf.merge(default_config().optimizer, {"base_lr": 0.01, "backbone_lr_scale": 1.0, **settings})


def test_of_a_vit_the_blocks_matrices_are_muons():
    network = SwAV(build_backbone("vit_tiny_patch16_224", **VIT), 8, 4, 6)
    built = build_optimizer(settings_of(name="muon"), network)
    muons = {p for group in built.param_groups if group["orthogonal"] for p in group["params"]}
    for name, p in network.named_parameters():
        assert (p in muons) == (name.startswith("backbone.blocks.") and name.endswith(".weight") and p.ndim == 2), name
    assert len(muons) == 3 * 4 and built.param_groups[-1]["params"] == [network.prototypes.weight]


def test_of_a_resnet_the_convolutions_behind_the_first_are_muons():
    options = {"block": "basic", "layers": [2, 1], "base_width": 4, "stem": "small"}
    network = SwAV(build_backbone("resnet", **options), 8, 4, 6)
    built = build_optimizer(settings_of(name="muon"), network)
    muons = {p for group in built.param_groups if group["orthogonal"] for p in group["params"]}
    convolutions = {p for name, p in network.backbone.named_parameters() if p.ndim == 4 and name != "conv1.weight"}
    assert muons == convolutions and len(muons) == 7


def test_frozen_matrices_stay_and_prototypes_keep_unit_rows():
    network = SwAV(build_backbone("vit_tiny_patch16_224", **VIT), 8, 4, 6)
    built = build_optimizer(settings_of(name="muon"), network, freezes_backbone=True)
    weights = [network.backbone.blocks[0].attn.qkv.weight.detach().clone()]
    for frozen in (True, False):
        network.backbone_frozen = frozen
        set_step(built, 0.01, frozen_prototypes=False, frozen_backbone=frozen)
        network([torch.randn(8, 3, 16, 16)], 4)[1].square().mean().backward()
        built.step()
        weights.append(network.backbone.blocks[0].attn.qkv.weight.detach().clone())
    assert [torch.equal(a, b) for a, b in pairwise(weights)] == [True, False]
    assert (network.prototypes.weight.norm(dim=1) - 1).abs().max() < 1e-6

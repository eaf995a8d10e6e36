"""What is measured: parts of cases, in an order in which the cheap and telling ones come first. Imports no torch.

Times are estimates for an H100; no GPU has confirmed them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from perf.gpu_check import correctness, speed
from perf.gpu_check.setup import Setup

PART_SECONDS = 480.0  # of one start; what a part does not reach, the next start continues


@dataclass(frozen=True)
class Case:
    """One measurement of about `seconds`. measure: gets `limit`, in seconds; returns rows, each with "holds". Raises
    RuntimeError if it fails or takes longer."""

    name: str
    seconds: float
    measure: Callable[..., list[dict[str, Any]]]


@dataclass(frozen=True)
class Part:
    name: str
    shows: str
    cases: Callable[[Setup], list[Case]]


def step(setup: Setup) -> list[Case]:
    return [Case("default", 60, partial(speed.step_rows, setup))]


def loader(setup: Setup) -> list[Case]:
    feeds: dict[str, dict[str, Any]] = {"dali": {"backend": "dali"}, "ffcv": {"backend": "ffcv"}}
    feeds |= {f"{name}, on the CPU": {**feed, "on_gpu": False} for name, feed in feeds.items()}
    return [Case(name, 40, partial(speed.feed_rows, setup, **feed)) for name, feed in feeds.items()]


def numerics(setup: Setup) -> list[Case]:
    return [
        Case("bf16, a long run", 60, partial(correctness.half_rows, setup, "bf16", (0,), setup.steps)),
        Case("bf16, stages", 100, partial(correctness.half_rows, setup, "bf16", (1, 2, 3))),
        Case("fp16, stages", 125, partial(correctness.half_rows, setup, "fp16", (0, 1, 2, 3))),
        Case("fp32, stages", 120, partial(correctness.stage_rows, setup)),
    ]


def ranks(setup: Setup) -> list[Case]:
    if setup.gpus == 1:
        return []
    return [
        Case("overlap_comm", 90, partial(correctness.overlap_rows, setup)),
        Case("batch norm", 60, partial(correctness.batch_norm_rows, setup)),
    ]


def decode(setup: Setup) -> list[Case]:
    cases = [
        Case(f"hw_decoder_load={load:g}", 40, partial(speed.feed_rows, setup, backend="dali", hw_decoder_load=load))
        for load in (0.0, 0.12, 0.9)
    ]
    plain = partial(speed.feed_rows, setup, backend="dali", fancy_upsampling=False)
    return [*cases, Case("without fancy upsampling", 40, plain)]


def codes(setup: Setup) -> list[Case]:
    return [Case("implementations", 90, partial(correctness.codes_rows, setup))]


def settings(setup: Setup) -> list[Case]:
    overlap = "engine.deepspeed.zero_optimization.overlap_comm"
    choices: dict[str, dict[str, Any]] = {
        "stage 0": {"stage": 0},
        "stage 1, overlap_comm=false": {"stage": 1, "more": (f"{overlap}=false",)},
        "stage 1, overlap_comm=true": {"stage": 1, "more": (f"{overlap}=true",)},
        "plain DDP": {"stage": 0, "peer": True},
        "stage 2": {"stage": 2},
        "stage 3": {"stage": 3},
        "fp16": {"precision": "fp16"},
        "fp32": {"precision": "fp32"},
    }
    return [Case(name, 45, partial(speed.step_rows, setup, **choice)) for name, choice in choices.items()]


def batch(setup: Setup) -> list[Case]:
    compiled = [
        Case("compile", 100, partial(speed.step_rows, setup, compile=True)),
        Case(
            "compile, CUDA graphs",
            110,
            partial(speed.step_rows, setup, compile=True, more=("engine.cuda_graphs=true",)),
        ),
    ]
    sizes = [max(2, setup.batch // 2), setup.batch * 2, setup.batch * 4]
    return [*compiled, *(Case(f"batch {n}", 50, partial(speed.step_rows, setup, batch=n)) for n in sizes)]


def tests(setup: Setup) -> list[Case]:
    return [Case("pytest -m gpu", 300, partial(correctness.test_rows, setup))]


PARTS = (
    Part("step", "does a step run, where does the host wait in it (nowhere is right), images/s, memory", step),
    Part("loader", "images/s of the loaders, and their crops against those made on the CPU", loader),
    Part(
        "numerics",
        "losses in bf16 and fp16 within 2 % of float32; every ZeRO stage takes the steps of stage 0",
        numerics,
    ),
    Part(
        "ranks", "several GPUs only: overlap_comm, synchronized batch norm against one GPU with the whole batch", ranks
    ),
    Part(
        "decode", "images/s and crops of the decoder by pipeline.hw_decoder_load, and without fancy upsampling", decode
    ),
    Part("codes", "which is fastest: eager, compiled, as a CUDA graph or by Triton kernels", codes),
    Part("settings", "images/s by ZeRO stage, overlap_comm on and off, in plain DDP, fp16, fp32", settings),
    Part("batch", "images/s and memory compiled and by batch", batch),
    Part("tests", "the tests that need a GPU", tests),
)


def explanation(setup: Setup) -> str:
    """A line for each part: its name, about how long it takes, and what it shows."""
    lines, total = [], 0.0
    for part in PARTS:
        seconds = sum(case.seconds for case in part.cases(setup))
        total += seconds
        lines.append(f"{part.name:<9} {seconds / 60:4.1f} min  {part.shows}")
    gpus = f"{setup.gpus} GPU{'s' if setup.gpus > 1 else ''}"
    return "\n".join([*lines, f"{'all':<9} {total / 60:4.1f} min  on {gpus} (estimates: no GPU has confirmed them)"])

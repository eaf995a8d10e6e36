"""A small report in the form of perf.profile, with plausible figures."""

from perf.machine import machine
from perf.report.verdict import verdict
from perf.sinkhorn.variants import Point

PHASES = {
    "data_wait": 0.38, "copy": 0.01, "forward_global": 0.16, "forward_local": 0.09, "teacher": 0.0, "codes": 0.02,
    "loss": 0.01, "backward": 0.25, "gradient_communication": 0.03, "optimizer": 0.04, "probe": 0.0, "other": 0.01,
}  # fmt: skip
SETTINGS = {
    "batch": 128, "precision": "bf16", "stage": 1, "method": "swav", "heads": 1, "prototypes": 3000,
    "hard_codes": False, "queue": 3840, "teacher": 0.0, "probe": False, "probe_labels": None,
}  # fmt: skip


def loader(rates, decode=3000.0):
    """The loader's part. rates: images/s of each round, by backend; decode: images/s of bare decoding."""
    results = [
        {"backend": backend, "mode": "full", "images_per_second": sorted(rounds)[len(rounds) // 2],
         "min": min(rounds), "max": max(rounds), "rounds": rounds, "cpu_ms_per_image": 1.2, "memory_mb": 310.0}
        for backend, rounds in rates.items()
    ]  # fmt: skip
    sweep = [
        {"backend": backend, "threads": threads, "batch": batch, "source": source, "images_per_second": rate,
         "min": 0.98 * rate, "max": 1.03 * rate, "rounds": [rate] * 3}
        for backend, fast in (("ffcv", 700.0), ("dali", 90.0))
        for threads, batch, source, rate in (
            (1, 64, "files", fast), (2, 64, "files", 2.0 * fast), (4, 64, "files", 2.05 * fast),
            (2, 16, "files", 1.7 * fast), (2, 256, "files", 2.1 * fast),
            (2, 16, "500 x 375", 2.0 * fast), (2, 16, "2000 x 1500", 0.3 * fast),
        )
    ]  # fmt: skip
    return {
        "results": results, "decode_images_per_second": decode, "decode_rounds": [decode] * 3,
        "ratios": {"full_over_torchvision": 9.8}, "scaling": {},
        "stages_ms": {"decode": 0.6, "resample": 0.13, "color": 0.23, "blur": 0.07, "kernel": 1.03},
        "memory": {}, "machine": machine(), "sweep": sweep,
        "ceilings": {"decode": decode, "read_warm": {"images_per_second": 20000.0, "mb_per_second": 2200.0},
                     "read_cold": {"why": "the file system keeps its pages"}},
        "gpus_fed": {"ffcv": {"rate_needed": 1400.0, "gpus": 1.1}},
        "images": {"count": 1200, "mean_bytes": 110000, "mean_width": 475, "mean_height": 392, "source": "made"},
        "settings": {"threads": 2, "batch": 64},
    }  # fmt: skip


def step(milliseconds):
    """The step's part. milliseconds: of each round."""
    middle = sorted(milliseconds)[len(milliseconds) // 2]
    times = {
        name: {"median": share * middle, "min": share * middle, "max": share * middle} for name, share in PHASES.items()
    }
    ranks = [
        {"rank": rank, "host": "node1", "step_ms": middle, "own_ms": middle - 5.0, "communication_ms": 5.0,
         "phases_ms": {name: share * middle for name, share in PHASES.items()}}
        for rank in range(2)
    ]  # fmt: skip
    row = {"precision": "bf16", "stage": 1, "compile": False, "channels_last": True, "images_per_second": 900.0,
           "step_ms": middle, "peak_gb": 12.5, "skipped": None}  # fmt: skip
    other = row | {"compile": True, "images_per_second": 1000.0}
    skipped = row | {"precision": "fp16", "images_per_second": None, "step_ms": None, "peak_gb": None}
    return {
        "images_per_second": 128e3 / middle, "step_ms": middle, "rounds_ms": milliseconds, "ranks": 2, "device": "cpu",
        "shares": PHASES, "phases_ms": times, "per_rank": ranks, "slowest_rank": 1, "slow": None, "overhead": 0.004,
        "peer_ratio": 0.87, "peer_left_out": None,
        "peer": {"step_ms": middle / 0.87, "ours_ms": middle, "ratio_min": 0.86, "ratio_max": 0.88,
                 "rounds": [0.86, 0.87, 0.88]},
        "codes_share": 0.02, "codes_collectives": 3,
        "collectives": [{"kind": "codes", "count": 3, "bytes": 72000, "ms": 0.4}],
        "roofline": {"peak_flops": 9e11, "bandwidth": 2e10, "flops_per_second": 4e11, "intensity": 53.0, "mfu": 0.44,
                     "share_of_roofline": 0.44, "bound": "matrix products",
                     "peak_of": "Conv2d 64x64x3x3", "peak_noise": 0.02},
        "peak_gb": 12.5, "variants": [row, other, skipped | {"skipped": "engine.precision=fp16 needs a GPU"}],
        "trace": None, "settings": SETTINGS, "machine": machine(),
        "verdict": "loader-bound: the network waits 38 % of each step; pipeline.backend=ffcv would hide it",
    }  # fmt: skip


def sinkhorn():
    """The codes' part: two variants, one and two ranks, three numbers of prototypes, and predictions for nodes."""
    measured = [
        Point(variant, prototypes, 64, 3, 2)._asdict()
        | {"ranks": ranks, "link": "local", "ms": cost * prototypes / 1000, "min": 1.0, "max": 2.0, "compute_ms": 0.8,
           "all_reduce_ms": 0.3, "collectives": calls, "bytes": 72000, "rounds": 5}
        for variant, calls, cost in (("ours", 3, 1.0), ("published", 8, 3.0))
        for prototypes in (300, 3000, 30000)
        for ranks in (1, 2)
    ]  # fmt: skip
    predicted = [
        {"variant": variant, "prototypes": 3000, "nodes": nodes, "ranks": 8 * nodes, "link": "20 us",
         "latency_us": 20.0, "compute_ms": 0.05, "all_reduce_ms": 0.1 * share, "exposed_ms": 0.05 + 0.1 * share,
         "share": 0.001 * share * nodes**0.5}
        for variant, share in (("ours", 1.0), ("published", 2.7))
        for nodes in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    ]  # fmt: skip
    held_out = [
        {"what": "all-reduce", "bytes": size, "ranks": 4, "link": link, "measured_us": 100.0 + size / 100,
         "predicted_us": 110.0 + size / 100, "error": 0.1}
        for size in (4, 2400, 24000)
        for link in ("local", "hosts 1 ms")
    ]  # fmt: skip
    return {
        "measured": measured, "held_out": held_out, "error": 0.1, "predicted": predicted, "model": {},
        "all_reduces": [{"ranks": 2, "link": "local", "one_core": False, "bytes": 4, "us": 80.0, "min": 70.0,
                         "max": 90.0, "predicted_us": 82.0, "rounds": 9}],
        "nodes_at": [{"link": "20 us", "variant": name, "1_percent": at, "5_percent": None}
                     for name, at in (("ours", 100), ("published", 14))],
        "nodes_at_1_percent": {"ours": 100, "published": 14}, "nodes_at_5_percent": {"ours": None, "published": 350},
        "nodes_at_link": "20 us", "step_ms": 46.0, "left_out": ["hosts 5 ms: --no-hosts"],
        "settings": {"step": "--step-ms", "compute": "measured: local", "prototypes": 3000, "batch": 64,
                     "iterations": 3, "crops": 2, "bandwidth_gb": 25, "ranks_per_node": 8, "seconds": 9.0,
                     "within_a_node": "measured: GPUs", "latency_us": [20.0]},
        "machine": machine() | {"taken_by_others": 0.0},
    }  # fmt: skip


def sample(milliseconds=(100.0, 101.0, 99.0, 100.5, 99.5), ffcv=(1500.0, 1510.0, 1490.0, 1505.0, 1495.0)):
    """The whole report. milliseconds: of a step, for each round; ffcv: images/s of that backend, for each round."""
    report = {
        "loader": loader({"ffcv": list(ffcv), "torchvision": [150.0, 152.0, 149.0]}),
        "step": step(list(milliseconds)),
        "sinkhorn": sinkhorn(),
        "failed": {},
        "machine": machine(),
        "seconds": 300,
    }
    return report | {"verdict": verdict(report)}

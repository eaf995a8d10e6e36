"""A step's figures as tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def step_parts(settings: Mapping[str, Any]) -> str:
    """What is in the measured step, in words."""
    heads, prototypes = settings["heads"], settings["prototypes"]
    parts = [f"method={settings['method']}", f"{heads} head{'s' * (heads > 1)} of {prototypes:,} prototypes"]
    parts += ["hard codes"] if settings["hard_codes"] else []
    parts += [f"a queue of {settings['queue']:,}"] if settings["queue"] else []
    parts += ["a teacher"] if settings["teacher"] else []
    if settings["probe"]:
        drawn = settings["probe_labels"] != "images"
        parts.append("the online probe" + ", whose labels are drawn at random: the images have none" * drawn)
    return "; ".join(parts)


def show(report: Mapping[str, Any]) -> None:
    """Print the report of perf.step."""
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(width=None if Console().is_terminal else 110)

    def right(*names: str) -> list[Any]:
        return [Column(name, justify="right") for name in names]

    where, settings = report["machine"], report["settings"]
    console.print(
        f"\n{', '.join(where['gpus']) or where['cpu']}; {report['ranks']} ranks, {settings['batch']} images a step, "
        f"{settings['precision']}, ZeRO stage {settings['stage']}: {report['images_per_second']:,.1f} images/s, "
        f"{report['step_ms']:,.1f} ms a step, at most {report['peak_gb']:.2f} GB a rank; marks add "
        f"{report['overhead']:+.1%}"
    )
    console.print(f"in the step: {step_parts(settings)}", highlight=False)
    phases = Table("phase", *right("share", "ms", "lowest", "highest"), title="A step, over ranks and steps")
    for name, share in report["shares"].items():
        times = report["phases_ms"][name]
        phases.add_row(name, f"{share:.1%}", *(f"{times[key]:.2f}" for key in ("median", "min", "max")))
    console.print(phases)
    ranks = Table(*right("rank"), "host", *right("step, ms", "its own", "collectives"), title="Ranks")
    for row in report["per_rank"]:
        times = (f"{row[key]:.2f}" for key in ("step_ms", "own_ms", "communication_ms"))
        ranks.add_row(str(row["rank"]), row["host"], *times)
    console.print(ranks)
    calls = Table("collectives", *right("a step", "kB", "ms"), title="Communication in a step, rank 0")
    for row in report["collectives"]:
        calls.add_row(row["kind"], f"{row['count']:g}", f"{row['bytes'] / 1e3:,.1f}", f"{row['ms']:.2f}")
    if calls.row_count:
        console.print(calls)
    line = report["roofline"]
    console.print(
        f"{line['flops_per_second'] / 1e12:.3f} TFLOP/s: {line['mfu']:.0%} of the fastest product measured here "
        f"({line['peak_flops'] / 1e12:.2f} TFLOP/s ± {line['peak_noise']:.0%}, {line['peak_of']}), "
        f"{line['intensity']:.0f} operations a byte at "
        f"{line['bandwidth'] / 1e9:,.0f} GB/s: {line['share_of_roofline']:.0%} of the roofline ({line['bound']})"
    )
    if report["peer"]:
        peer = report["peer"]
        console.print(
            f"plain PyTorch: {peer['step_ms']:,.1f} ms a step, ours {peer['ours_ms']:,.1f}: ratio "
            f"{report['peer_ratio']:.3f} ({peer['ratio_min']:.3f} to {peer['ratio_max']:.3f}), at most 0.9 is the aim"
        )
    if report["peer_left_out"]:
        console.print(f"--peer: left out, the plain loop does not have {report['peer_left_out']}", markup=False)
    variants = Table("precision", *right("stage"), "compile", "channels-last", *right("images/s", "GB"), "")
    for row in report["variants"]:
        speed = ("", "") if row["skipped"] else (f"{row['images_per_second']:,.1f}", f"{row['peak_gb']:.2f}")
        choices = (str(row[key]).lower() for key in ("precision", "stage", "compile", "channels_last"))
        variants.add_row(*choices, *speed, row["skipped"] or "")
    console.print(variants)
    console.print(report["verdict"], markup=False)

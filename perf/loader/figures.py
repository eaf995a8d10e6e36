"""Computes the figures of the loader benchmark from its turns, and prints its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from perf.interleaved import Contender, Turn, within_rounds
from perf.loader.tables import more_tables

FULL, CROPS, DECODE = ("ffcv", "full"), ("ffcv", "crops"), ("libjpeg-turbo", "decode")
RATIOS = {  # name -> (numerator, denominator), each a (backend, mode)
    "full_over_torchvision": (FULL, ("torchvision", "full")),
    "full_over_dali": (FULL, ("dali", "full")),
    "full_over_dali_random": (FULL, ("dali-random", "full")),
    "affine_over_full": (("ffcv-affine", "full"), FULL),
    "time_over_decode": (DECODE, FULL),
    "crops_over_decode": (CROPS, DECODE),
}
TARGETS = {  # least value of each figure; largest value of those in AT_MOST
    "full_over_torchvision": 6.0,
    "full_over_dali": 3.5,
    "time_over_decode": 2.5,
    "crops_over_decode": 0.55,
    "scaling": 0.95,
    "above_imports_mb": 400.0,
}
AT_MOST = ("time_over_decode", "above_imports_mb")
WORDS = {
    "full_over_torchvision": "ffcv, full: rate / torchvision's",
    "full_over_dali": "ffcv, full: rate / that of swave's dali backend",
    "full_over_dali_random": "ffcv, full: rate / dali-random's",
    "affine_over_full": "ffcv-affine, full: rate / ffcv's",
    "time_over_decode": "ffcv, full: time / that of bare decoding",
    "crops_over_decode": "ffcv, crops: rate / that of bare decoding",
}


def figures(contenders: Sequence[Contender], turns: Sequence[Sequence[Turn]], cores: int) -> dict[str, Any]:
    """The results of all contenders on `cores` cores, the rate of bare decoding, ratios, and the gain from cores."""
    rates = {
        (contender.backend, contender.mode, contender.cores): [turn.rate for turn in own_turns]
        for contender, own_turns in zip(contenders, turns, strict=True)
    }
    costs = {
        (contender.backend, contender.mode, contender.cores): median(1000 * t.cpu_seconds / t.images for t in own_turns)
        for contender, own_turns in zip(contenders, turns, strict=True)
    }
    results = [
        {
            "backend": backend,
            "mode": mode,
            "images_per_second": round(median(rounds), 1),
            "min": round(min(rounds), 1),
            "max": round(max(rounds), 1),
            "rounds": [round(rate, 1) for rate in rounds],
            "cpu_ms_per_image": round(costs[(backend, mode, used)], 3),
        }
        for (backend, mode, used), rounds in rates.items()
        if used == cores
    ]
    decode = rates.get((*DECODE, cores))
    return {
        "results": [result for result in results if result["mode"] != "decode"],
        "decode_images_per_second": round(median(decode), 1) if decode else None,
        "decode_rounds": [round(rate, 1) for rate in decode] if decode else [],
        "ratios": {
            name: round(within_rounds(rates[(*top, cores)], rates[(*bottom, cores)]), 3)
            for name, (top, bottom) in RATIOS.items()
            if (*top, cores) in rates and (*bottom, cores) in rates
        },
        "scaling": scaling(rates, cores),
    }


def scaling(rates: Mapping[tuple[str, str, int], Sequence[float]], cores: int) -> dict[str, Any]:
    """Gain in rate from one core to `cores`, by mode and relative to bare decoding; {} if this was not measured.

    rates: images a second of each round, by (backend, mode, cores).
    """
    gains = {
        mode: [many / one for many, one in zip(rates[(backend, mode, cores)], rates[(backend, mode, 1)], strict=True)]
        for backend, mode in (DECODE, FULL, CROPS)
        if cores > 1 and (backend, mode, 1) in rates
    }
    if "decode" not in gains:
        return {}
    figures: dict[str, Any] = {"cores": [1, cores]}
    for mode, gain in gains.items():
        figures[mode] = round(median(gain), 3)
        if mode != "decode":
            figures[f"{mode}_over_decode"] = round(within_rounds(gain, gains["decode"]), 3)
    return figures


def show(report: Mapping[str, Any]) -> None:
    """Print the report as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 110)
    images, settings, machine = report["images"], report["settings"], report["machine"]
    console.print(
        f"\n{machine['cpu']}, {settings['threads']} of {machine['cores']} cores; {images['count']} images of "
        f"{images['mean_width']} x {images['mean_height']} pixels, {images['mean_bytes'] / 1000:.0f} kB on average; "
        f"batches of {settings['batch']}; {settings['rounds']} rounds"
    )
    rates = Table(
        "backend",
        "mode",
        *(_right(text) for text in ("images/s", "lowest", "highest", "CPU ms an image", "MB")),
        title="Rates, medians; memory above imports",
    )
    for result in sorted(report["results"], key=lambda r: (r["mode"] != "full", -r["images_per_second"])):
        note = " (1 crop, not 8)" if result["backend"] == "ffcv-stock-one-view" else ""
        figures = (f"{result[key]:,.0f}" for key in ("images_per_second", "min", "max"))
        memory = result["memory_mb"]
        more = f"{result['cpu_ms_per_image']:.2f}", "" if memory is None else f"{memory:,.0f}"
        rates.add_row(result["backend"] + note, result["mode"], *figures, *more)
    if report["decode_images_per_second"]:
        decode = report["decode_rounds"]
        rates.add_row("libjpeg-turbo", "decode", *(f"{f:,.0f}" for f in (median(decode), min(decode), max(decode))))
    console.print(rates)
    for table in more_tables(report):
        console.print(table)
    checks = Table("what", _right("measured"), "target", title="Ratios, within rounds")
    for what, value, target in _checks(report):
        checks.add_row(what, value, target)
    if checks.row_count:
        console.print(checks)
    if report["stages_ms"]:
        steps = Table(*(_right(name) for name in report["stages_ms"]), title="ffcv, full: CPU ms an image")
        steps.add_row(*(f"{value:.3f}" for value in report["stages_ms"].values()))
        console.print(steps)
    if machine["taken_by_others"] > 0.02:
        share = f"Other programs took {machine['taken_by_others']:.0%} of this machine's CPU time"
        console.print(f"{share}: rates are too low, and ratios less certain.")


def _checks(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of the figures that have targets, and of related ones: name, value, target and whether it is met."""
    rows = [(WORDS[name], f"{value:.2f}", _verdict(name, value)) for name, value in report["ratios"].items()]
    for mode in ("full", "crops"):
        value = report["scaling"].get(f"{mode}_over_decode")
        if value is not None:
            step = "1 to {1} cores".format(*report["scaling"]["cores"])
            rows.append(
                (f"ffcv, {mode}: gain from {step} / that of decoding", f"{value:.2f}", _verdict("scaling", value))
            )
    memory = report["memory"]
    if memory:
        value = memory["above_imports_mb"]
        what = f"ffcv, crops, batch {memory['batch']}: peak memory above imports"
        rows.append((what, f"{value:.0f} MB", _verdict("above_imports_mb", value)))
        first, last = memory["epochs_mb"][0], memory["epochs_mb"][-1]
        rows.append((f"  after epoch 1 and {len(memory['epochs_mb'])}", f"{first:.0f}, {last:.0f} MB", ""))
    return rows


def _verdict(name: str, value: float) -> str:
    target = TARGETS.get(name)
    if target is None:
        return ""
    at_most = name in AT_MOST
    met = value <= target if at_most else value >= target
    return f"{'at most' if at_most else 'at least'} {target:g}: {'met' if met else 'missed'}"


def _right(text: str) -> Any:
    from rich.table import Column

    return Column(text, justify="right")

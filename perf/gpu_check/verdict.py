"""What the record of a device means: which settings to change, what does not hold, and a page of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from perf.gpu_check.plan import PARTS

Record = Mapping[str, Any]
Row = Mapping[str, Any]
GAIN = 1.03  # times as fast, at least, before another setting is advised
TARGETS = {"H200": 1300.0, "H100": 1100.0}  # images a second; the next target on an H200 is 2,000
MAX_CODES_SHARE = 0.015  # of a step, at most
OVERLAP = "engine.deepspeed.zero_optimization.overlap_comm"
WAYS = {
    "stage 0": "engine.stage=0",
    "stage 1, overlap_comm=false": f"engine.stage=1 {OVERLAP}=false",
    "stage 1, overlap_comm=true": f"engine.stage=1 {OVERLAP}=true",
    "stage 2": "engine.stage=2",
    "stage 3": "engine.stage=3",
}
SHOWN = (  # columns of the page
    "images_per_second", "share_of_roofline", "peak_gb", "host_share", "codes_share", "waits_in_a_step", "precision",
    "stage", "batch", "threads", "levels", "loss_deviation", "update_deviation", "way", "ms", "pytest", "error",
)  # fmt: skip


def rows(record: Record, part: str) -> list[Row]:
    return record.get("parts", {}).get(part, [])


def rate(record: Record, part: str, case: str) -> float:
    """Images a second and GPU of a case, 0 if it was not measured."""
    return max((row.get("images_per_second", 0.0) for row in rows(record, part) if row["case"] == case), default=0.0)


def best_rate(record: Record) -> float:
    """Images a second and GPU of the fastest step, 0 if none was measured."""
    steps = [row for part in ("step", "settings", "batch") for row in rows(record, part) if row["case"] != "plain DDP"]
    return max((row.get("images_per_second", 0.0) for row in steps), default=0.0)


# ---------------------------------------------------------------------------------------------- settings
def advice(record: Record) -> list[tuple[str, str]]:
    """(settings, reason) for each change that pays on this device."""
    return [*_engine(record), *_batch(record), *_loader(record), *_precision(record)]


def _faster(new: float, old: float) -> bool:
    return old > 0 and new > GAIN * old


def _than(new: float, old: float) -> str:
    return f"{new:,.0f} instead of {old:,.0f} images/s"


def _engine(record: Record) -> list[tuple[str, str]]:
    usual, found = rate(record, "step", "default"), list[tuple[str, str]]()
    best = max(WAYS, key=lambda case: rate(record, "settings", case))
    for words, value in (
        (WAYS[best], rate(record, "settings", best)),
        ("engine.compile=true", rate(record, "batch", "compile")),
        ("engine.compile=true engine.cuda_graphs=true", rate(record, "batch", "compile, CUDA graphs")),
    ):
        if _faster(value, usual):
            found.append((words, _than(value, usual)))
    return found


def _batch(record: Record) -> list[tuple[str, str]]:
    usual = rate(record, "step", "default")
    timed = [row for row in rows(record, "batch") if "error" not in row and "compile" not in row["case"]]
    sizes = {row["batch"]: row["images_per_second"] for row in timed if _faster(row["images_per_second"], usual)}
    if not sizes:
        return []
    best = max(sizes, key=lambda size: sizes[size])
    return [(f"run.batch_size={best * record['gpus']}", f"{_than(sizes[best], usual)}; the learning rate follows it")]


def _feeds(record: Record) -> list[Row]:
    """The loaders that a run can take: those whose crops are as they should be."""
    timed = [row for part in ("loader", "decode") for row in rows(record, part)]
    return [row for row in timed if row.get("fancy_upsampling") and row["holds"]]


def _loader(record: Record) -> list[tuple[str, str]]:
    feeds = _feeds(record)
    usual = rate(record, "loader", "dali")
    best = max(feeds, key=lambda row: row["images_per_second"], default=None)
    if best is None or not _faster(best["images_per_second"], usual):
        return []
    words = f"pipeline.backend={best['backend']} pipeline.device={'gpu' if best['on_gpu'] else 'cpu'}"
    if best["hw_decoder_load"] is not None:
        words += f" pipeline.hw_decoder_load={best['hw_decoder_load']:g}"
    return [(words, f"the loader gives {_than(best['images_per_second'], usual)}")]


def _precision(record: Record) -> list[tuple[str, str]]:
    failed = [row for row in rows(record, "numerics") if row["case"].startswith("bf16") and not row["holds"]]
    return [("engine.precision=fp32", "losses in bf16 do not follow those in float32")] if failed else []


def remarks(record: Record) -> list[str]:
    """What is worth knowing, but is no setting."""
    texts = []
    timed = [row for row in rows(record, "codes") if "ms" in row and row["holds"]]
    if timed:
        best = min(timed, key=lambda row: row["ms"])
        text = f"Codes are fastest as {best['way']}: {best['ms']:.3g} ms."
        texts.append(text + " (`with_kernels = True` in model/sinkhorn.py)" * (best["way"] == "triton"))
    plain, with_fancy = rate(record, "decode", "without fancy upsampling"), rate(record, "loader", "dali")
    if _faster(plain, with_fancy):
        texts.append(
            f"Without fancy upsampling the dali loader gives {_than(plain, with_fancy)}; its crops differ then."
        )
    ddp, ours = rate(record, "settings", "plain DDP"), rate(record, "step", "default")
    if ddp and ours:
        text = f"A plain DDP loop of the published algorithm: {ddp:,.0f} images/s"
        texts.append(f"{text}; the default step is {ours / ddp:.2f} times as fast.")
    return texts


# ---------------------------------------------------------------------------------------------- what holds
def problems(record: Record) -> list[str]:
    """A line for each row that does not hold and each goal that is missed."""
    lines = []
    for part in PARTS:
        for row in rows(record, part.name):
            if not row["holds"]:
                waits = row.get("waits_in_a_step")
                beyond = f"the host waits at {_counted(waits)}" if waits else "beyond its limit, see below"
                why = row.get("error", beyond)
                lines.append(f"{part.name}: {row['case']}: {why}")
    return lines + [f"{what}: {value:.4g}, the goal is {goal}" for what, value, goal, met in goals(record) if not met]


def goals(record: Record) -> list[tuple[str, float, str, bool]]:
    """(what, measured, goal, whether it is met) of each goal whose figure was measured."""
    found, best = list[tuple[str, float, str, bool]](), best_rate(record)
    target = next((value for name, value in TARGETS.items() if name in record["device"]), None)
    if target and best:
        found.append(("images/s of a GPU", best, f"at least {target:,.0f}", best >= target))
    feeds = [row["images_per_second"] for row in _feeds(record)]
    if feeds and best:
        fastest, step = max(feeds), f"at least {best:,.0f}, which the fastest step takes"
        found.append(("images/s of the fastest loader for a GPU", fastest, step, fastest >= best))
    for row in rows(record, "step"):
        if row.get("codes_share") is not None:
            share, calls = row["codes_share"], row["codes_collectives"]
            found.append(("codes' share of a step", share, f"at most {MAX_CODES_SHARE}", share <= MAX_CODES_SHARE))
            found.append(("all-reduces of the codes", calls, "3", calls == 3))
    return found


# ---------------------------------------------------------------------------------------------- the page
def page(record: Record, left: list[str]) -> str:
    """The record as Markdown: what to change, what does not hold, what is left, and all figures."""
    gpus = f"{record['gpus']} x " if record["gpus"] > 1 else ""
    lines = [f"# gpu-check: {gpus}{record['device']}", "", "## Change these settings", ""]
    changes = [f"- `{words}`: {reason}" for words, reason in advice(record)]
    lines += changes or [f"- None of the measured ones gains more than {GAIN - 1:.0%}."]
    lines += [f"- {text}" for text in remarks(record)]
    lines += [
        "",
        "## Does not hold",
        "",
        *(f"- {text}" for text in problems(record) or ["Nothing of what was measured."]),
    ]
    if left:
        lines += ["", "## Not measured yet", "", *(f"- {name}" for name in left), "", "Run the same command again."]
    for part in PARTS:
        if rows(record, part.name):
            lines += ["", f"## {part.name}: {part.shows}", "", *_table(rows(record, part.name))]
    return "\n".join(lines) + "\n"


def _table(of_part: list[Row]) -> list[str]:
    names = [name for name in SHOWN if any(row.get(name) not in (None, []) for row in of_part)]
    lines = ["| case | " + " | ".join(names) + " | holds |", "| --- |" + " --- |" * (len(names) + 1)]
    for row in of_part:
        cells = [_cell(row.get(name)) for name in names]
        lines.append(f"| {row['case']} | " + " | ".join(cells) + f" | {'yes' if row['holds'] else '**no**'} |")
    return lines


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    if isinstance(value, list):
        return _counted(value)
    return "" if value is None else str(value)


def _counted(places: list[str]) -> str:
    """Each place once, with how often it occurs."""
    return ", ".join(f"{place} ({count} times)" if count > 1 else place for place, count in Counter(places).items())

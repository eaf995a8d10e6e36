"""The verdict of the report: what limits training here, how much the loader can feed, what codes cost on nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def verdict(report: Mapping[str, Any]) -> str:
    """All sentences as one text."""
    return " ".join(sentences(report))


def sentences(report: Mapping[str, Any]) -> list[str]:
    """A sentence for each measured part, first the step. report: the parts loader, step, sinkhorn, None if missing."""
    texts = [_step(report.get("step")), _loader(report.get("loader")), _codes(report)]
    return [sentence for sentence in texts if sentence] or ["Nothing was measured."]


def _step(step: Mapping[str, Any] | None) -> str:
    if step is None:
        return ""
    text = step["verdict"]
    return f"{text[0].upper()}{text[1:]}."


def _loader(loader: Mapping[str, Any] | None) -> str:
    if loader is None:
        return ""
    full = {row["backend"]: row["images_per_second"] for row in loader["results"] if row["mode"] == "full"}
    rates = {name: full[name] for name in ("ffcv", "dali") if name in full}
    if not rates:
        return ""
    best = max(rates, key=lambda name: rates[name])
    fed = loader.get("gpus_fed", {}).get(best)
    if fed:
        return (
            f"The loader gives {rates[best]:,.0f} images/s with backend {best}: enough for {fed['gpus']:.2g} devices "
            f"at {fed['rate_needed']:,.0f} images/s each."
        )
    return f"The loader gives {rates[best]:,.0f} images/s with backend {best}."


def _codes(report: Mapping[str, Any]) -> str:
    sinkhorn = report.get("sinkhorn")
    if sinkhorn is None:
        return ""
    link = sinkhorn.get("nodes_at_link", "the given links")
    one, five = (sinkhorn[f"nodes_at_{percent}_percent"].get("ours") for percent in (1, 5))
    if one is None:
        return f"Codes stay below 1 % of a step on up to 512 nodes ({link} a hop)."
    start = f"Codes pass 1 % of a step at {one} nodes ({link} a hop)" if one > 1 else "Codes take over 1 % of a step"
    return f"{start}, and 5 % at {five}." if five else f"{start}, and stay below 5 % on up to 512."

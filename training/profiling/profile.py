"""The profile of some steps over all ranks, and the profiler of train.py's own steps (perf.profile=true)."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any

from omegaconf import DictConfig

from training.distributed import cluster_from_environment
from training.profiling.bottleneck import verdict
from training.profiling.collectives import by_kind, counting, timed
from training.profiling.timeline import PHASES, Timeline, phase_sums, watching
from training.profiling.trace import trace

SLOW = 1.05  # a rank is slow if its own time is more than this many times the median of the others


def of_rank(rank: int, timeline: Timeline, calls: Sequence[Any]) -> dict[str, Any]:
    """This rank's steps: spans of phases, and collectives, in milliseconds from the timeline's origin."""
    spans, communicated = timeline.spans(), timed(timeline, calls)
    return {"rank": rank, "host": socket.gethostname(), "spans": spans, "collectives": communicated}


def summary(ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures over all ranks. ranks: from `of_rank`, the same number of steps on each, at least one.

    step_ms       median over steps of the ranks' mean
    shares        of the time of all steps and ranks, for each phase; they add up to 1
    phases_ms     median, min and max over steps and ranks
    per_rank      rank, host, step_ms, phases_ms (means), own_ms (a step without its collectives, where it waits for
                  the others), communication_ms
    slowest_rank  the one with the longest own time; `slow` says how far it is behind, and in which phase most
    collectives   a step of rank 0, by kind
    """
    sums = [[phase_sums(step) for step in rank["spans"]] for rank in ranks]
    lengths = [[sum(step.values()) for step in steps] for steps in sums]
    total = sum(map(sum, lengths))
    each = {name: [step[name] for steps in sums for step in steps] for name in PHASES}
    per_rank = [_one_rank(rank, steps) for rank, steps in zip(ranks, sums, strict=True)]
    own = [row["own_ms"] for row in per_rank]
    slowest = own.index(max(own))
    return {
        "steps": len(lengths[0]),
        "ranks": len(ranks),
        "step_ms": round(median(sum(step) / len(step) for step in zip(*lengths, strict=True)), 3),
        "shares": {name: sum(values) / total for name, values in each.items()},
        "phases_ms": {
            name: {"median": round(median(values), 4), "min": round(min(values), 4), "max": round(max(values), 4)}
            for name, values in each.items()
        },
        "per_rank": per_rank,
        "slowest_rank": per_rank[slowest]["rank"],
        "slow": _slow(per_rank, slowest),
        "collectives": by_kind(ranks[0]["collectives"], len(lengths[0])),
    }


def _one_rank(rank: Mapping[str, Any], steps: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    count = len(steps)
    phases = {name: sum(step[name] for step in steps) / count for name in PHASES}
    waited = sum(call[4] or 0.0 for call in rank["collectives"]) / count
    length = sum(phases.values())
    return {
        "rank": rank["rank"],
        "host": rank["host"],
        "step_ms": round(length, 3),
        "own_ms": round(length - waited, 3),
        "communication_ms": round(waited, 3),
        "phases_ms": {name: round(value, 4) for name, value in phases.items()},
    }


def _slow(per_rank: Sequence[Mapping[str, Any]], slowest: int) -> dict[str, Any] | None:
    """How the slowest rank compares with the median of the others. None if it is not slow, or the only one."""
    others = [row for index, row in enumerate(per_rank) if index != slowest]
    if not others:
        return None
    usual = median(row["own_ms"] for row in others)
    own = per_rank[slowest]["own_ms"]
    if own <= SLOW * usual:
        return None
    behind = {
        name: per_rank[slowest]["phases_ms"][name] - median(row["phases_ms"][name] for row in others) for name in PHASES
    }
    return {
        "rank": per_rank[slowest]["rank"],
        "host": per_rank[slowest]["host"],
        "own_ms": own,
        "others_ms": round(usual, 3),
        "phase": max(behind, key=lambda name: behind[name]),
    }


def summary_lines(profile: Mapping[str, Any]) -> list[str]:
    """The lines that a run prints about its profile."""
    parts = sorted(profile["shares"].items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {share:.1%}" for name, share in parts if share >= 0.001)
    lines = [f"profile of {profile['steps']} steps: {profile['step_ms']:.1f} ms a step, of which {shown}"]
    slow = profile["slow"]
    if slow is not None:
        lines.append(
            f"rank {slow['rank']} on {slow['host']} is slow: {slow['own_ms']:.1f} ms of own time a step, the others "
            f"{slow['others_ms']:.1f}; most of it in {slow['phase']}"
        )
    elif profile["ranks"] > 1:
        lines.append(f"no rank is slow: rank {profile['slowest_rank']} takes hardly longer than the others")
    return lines


# ---------------------------------------------------------------------------------------------- within train.py
def profile_steps(config: DictConfig, left: int, times: Any, journal: Any, *parts: Any) -> None:
    """If perf.profile is set, profile perf.steps steps of this run after its first perf.skip steps.

    Rank 0 then writes profile.json and profile-trace.json of all ranks to the run's directory and prints a summary.
    left: steps that the run still takes. times: the loop's `StepTimes`. parts: engine, monitor, teacher and probe,
    whose calls are marked; None for a teacher or probe that the run does not have.
    """
    if config.perf.profile and left <= config.perf.skip:
        journal.say(f"perf.profile: nothing to profile: perf.skip leaves none of this run's {left} steps")
    elif config.perf.profile:
        last = min(config.perf.skip + config.perf.steps, left)
        times.listener = _Profiler(config, last, times, journal, parts)


class _Profiler:
    """Receives the loop's marks. It profiles the chosen steps, then removes all its hooks."""

    def __init__(self, config: DictConfig, last: int, times: Any, journal: Any, parts: Sequence[Any]) -> None:
        self.config, self.times, self.journal, self.parts, self.engine = config, times, journal, parts, parts[0]
        self.last, self.ended = last, 0
        self.watched = ExitStack()
        self.timeline: Any = None
        self.calls: list[Any] = []

    def __call__(self, name: str) -> None:
        if name == "data_wait" and self.ended == self.config.perf.skip and self.timeline is None:
            self._start()
        if self.timeline is not None:
            self.timeline.hear(name)
        if name == "end":
            self.ended += 1
            if self.ended == self.last:
                self._finish()

    def _start(self) -> None:
        import torch.distributed as dist

        dist.barrier()  # so that the ranks' clocks begin together
        self.timeline = Timeline(self.engine.device)
        self.watched.enter_context(watching(self.timeline, *self.parts))
        self.calls = self.watched.enter_context(counting(self.timeline))

    def _finish(self) -> None:
        import torch.distributed as dist

        self.watched.close()
        self.times.listener = None
        own = of_rank(dist.get_rank(), self.timeline, self.calls)
        ranks: list[Any] = [own] * dist.get_world_size()
        dist.all_gather_object(ranks, own)
        profile = summary(ranks)
        profile["verdict"] = verdict(
            profile, settings_of(self.config, self.engine.device.type, cluster_from_environment())
        )
        self.journal.record("profile.json", profile)
        self.journal.record("profile-trace.json", trace(ranks))
        for line in (*summary_lines(profile), profile["verdict"]):
            self.journal.say(line)
        self.journal.say(f"{self.journal.directory / 'profile.json'}; profile-trace.json for ui.perfetto.dev")


def settings_of(config: DictConfig, device: str, cluster: Any) -> dict[str, Any]:
    """The values of a fitted recipe on which a step's time, and so the verdict, depends. teacher: its first momentum,
    0 without a teacher."""
    return {
        "method": config.method,
        "heads": config.model.heads,
        "hard_codes": config.swav.hard,
        "queue": config.swav.queue.length,
        "teacher": config.swav.teacher.momentum,
        "probe": config.evaluation.probe,
        "device": device,
        "ranks": cluster.world_size,
        "local_ranks": cluster.local_world_size,
        "cores": len(os.sched_getaffinity(0)),
        "threads": config.pipeline.threads,
        "backend": config.pipeline.backend,
        "batch": config.run.batch_size,
        "stage": config.engine.stage,
        "precision": config.engine.precision,
        "compile": config.engine.compile,
        "accumulation": config.engine.accumulation,
        "sync_batch_norm": config.engine.sync_batch_norm,
        "prototypes": config.model.prototypes,
    }

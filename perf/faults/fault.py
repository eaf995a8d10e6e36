"""A fault as a row: what is done to which program, what a user must see, and what the same command then gives."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from perf.faults.place import Ended, Place, Start, Unexpected, losses, resumed_from, saved_steps
from perf.faults.programs import TRAIN, Program
from perf.faults.snapshots import Snapshots

# What follows a fault: the same command gives the undisturbed result (after the repair), the program itself goes on to
# it, or the fault cannot be seen and changes the result.
SAME, ENDED, UNSEEN = "same", "ended", "unseen"


Inject = Callable[[Place, Program], Ended]


@dataclass(frozen=True)
class Fault:
    """kind: the heading in the table. what: the fault in words, unique in its kind.

    inject: breaks the program in a place and returns how it ended. code: its exit code; several: any of them.
    says: a regular expression of the line that a user must see; "" for a program that cannot say anything.
    then: SAME, ENDED or UNSEEN.
    begins: the snapshot. needs: what this machine must have, a key of `perf.faults.needs`.
    """

    kind: str
    what: str
    inject: Inject
    code: int | tuple[int, ...]
    says: str
    then: str = SAME
    ranks: int = 1
    begins: str = "images"
    program: Program = TRAIN
    needs: str = ""
    short: bool = False  # also in the short form, which CI runs

    @property
    def name(self) -> str:
        return f"{self.kind}: {self.what}"


def carry_out(fault: Fault, snapshots: Snapshots) -> dict[str, Any]:
    """Break the program, look at it, give the same command again. Returns a row of the report; "wrong" lists what did
    not hold."""
    begun = time.monotonic()
    row: dict[str, Any] = {"kind": fault.kind, "fault": fault.what, "program": fault.program.name, "ranks": fault.ranks}
    try:
        # The undisturbed program first, as it uses the same place.
        program = fault.program
        expected = snapshots.undisturbed(program.begins, fault.ranks, program.name, program.arguments, program.result)
        place = snapshots.fresh(fault.begins, fault.ranks)
        with place.after, place.repairs:
            row |= _tried(fault, place, expected)
    except Unexpected as problem:
        row |= {"code": None, "sees": "", "wrong": [str(problem)]}
    return row | {"seconds": round(time.monotonic() - begun, 1), "holds": not row["wrong"]}


def _tried(fault: Fault, place: Place, expected: Any) -> dict[str, Any]:
    wrong = []
    ended = fault.inject(place, fault.program)
    line = shown(ended.output, fault.says, place)
    codes = fault.code if isinstance(fault.code, tuple) else (fault.code,)
    if ended.code not in codes:
        tail = " ".join(ended.output[-400:].split())
        wrong.append(f"exit code {'none: it hangs' if ended.code is None else ended.code}: {tail}")
    if fault.says and not line:
        wrong.append(f"no line like {fault.says!r}: {' '.join(ended.output[-600:].split())}")
    if "Traceback (most recent call last)" in ended.output:
        trace = ended.output[ended.output.rindex("Traceback (most") :]
        wrong.append(f"a traceback: {' '.join(trace.split())[-400:]}")
    trains = fault.program.name.startswith("train.py")
    logged = max(losses(place.run), default=0) if trains else 0
    row = {"code": ended.code, "sees": line}
    if fault.then == ENDED:
        if not same(fault.program.result(place), expected):
            wrong.append(f"another result: {difference(fault.program.result(place), expected)}")
        return row | {"lost": "nothing", "restart": "not needed", "wrong": wrong}
    if fault.then == UNSEEN:
        return row | {"sees": "nothing", "lost": "not noticed", "restart": "another result", "wrong": wrong}
    place.repairs.close()
    saved = max(saved_steps(place.run), default=0)
    again = place.start(fault.program.arguments(place)).end()
    if again.code != 0 or "Traceback" in again.output:
        wrong.append(f"the same command ends with {again.code}: {' '.join(again.output[-600:].split())}")
    if not same(fault.program.result(place), expected):
        wrong.append(f"the same command: another result: {difference(fault.program.result(place), expected)}")
    row |= {"lost": "nothing", "restart": "undisturbed result"}
    if trains:
        resumed = resumed_from(again.output) or 0
        repeated = max(0, logged - resumed) if "is done" not in again.output else 0
        row |= {"lost": f"{repeated} steps" if repeated else "nothing", "saved": saved, "resumed": resumed}
        if resumed < saved and "is done" not in again.output:
            wrong.append(f"saved at step {saved}, resumed from {resumed}")
    return row | {"wrong": wrong}


def same(one: Any, other: Any) -> bool:
    return bool(one == other)


def difference(one: Any, other: Any) -> str:
    """What differs, in a few words."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return f"{str(one)[:80]} for {str(other)[:80]}"
    keys = [key for key in {**other, **one} if one.get(key) != other.get(key)]
    return f"{len(keys)} of {len(other)} values, {keys[0]}: {one.get(keys[0])} for {other.get(keys[0])}"


def shown(output: str, pattern: str, place: Place) -> str:
    """The first line that the pattern is found in, with the place's path as `...`."""
    if not pattern:
        return ""
    for line in output.replace("\r", "\n").splitlines():
        if re.search(pattern, line):
            return line.strip().replace(str(place.folder), "...").replace(os.uname().nodename, "HOST")
    return ""


def broken(
    point: str, call: int, act: Callable[[Place, Start], None], rank: int = 0, settings: Sequence[str] = ()
) -> Inject:
    """An injection: the program is stopped before a call of the point, `act` breaks something, and it goes on.

    settings: in addition to the program's arguments; they must not change its result.
    """

    def inject(place: Place, program: Program) -> Ended:
        started = place.stop_at([*program.arguments(place), *settings], point, call, rank=rank)
        act(place, started)
        started.go()
        return started.end()

    return inject

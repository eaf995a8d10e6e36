"""The formula of perf.memory against real ranks; for larger networks against perf/results/memory.json."""

import json
import os

import pytest

from config.recipe import ROOT
from perf.memory import MODELS, parameters_of, peak_bytes, run
from perf.memory_ranks import Case
from support.programs import run_module


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_the_formula_is_within_10_percent_of_the_memory_of_two_ranks(stage):
    model, optimizer = MODELS["resnet50"]
    count, small = parameters_of("resnet50")
    computed = peak_bytes(count, small, stage, 2, "fp32", optimizer, gathered_twice=True)
    measured = 1e6 * max(rank["peak"] for rank in run(Case("resnet50", model, optimizer, stage, 2)))
    assert computed == pytest.approx(measured, rel=0.1)


def test_the_environment_of_the_ranks_ends_with_them(monkeypatch):
    seen = []

    def note_environment(function, ranks, case, folder, method):
        seen.append(os.environ.get("MALLOC_MMAP_THRESHOLD_"))
        (folder / "0.json").write_text("{}")

    monkeypatch.setattr("perf.memory.run_ranks", note_environment)
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    run(Case("resnet50", *MODELS["resnet50"], 1, 1))
    assert seen == ["65536"] and "MALLOC_MMAP_THRESHOLD_" not in os.environ


def test_the_measured_table_holds_10_percent():
    rows = json.loads((ROOT / "perf" / "results" / "memory.json").read_text())["rows"]
    assert {row["network"] for row in rows} == set(MODELS)
    assert {(row["stage"], row["ranks"]) for row in rows} == {(s, n) for s in range(4) for n in (1, 2, 4)}
    for row in rows:
        count, small = parameters_of(row["network"])
        computed = peak_bytes(
            count, small, row["stage"], row["ranks"], row["precision"], row["optimizer"], row["ranks"] > 1
        )
        assert computed == pytest.approx(row["measured"], rel=0.1), row


def test_a_higher_stage_needs_less_memory():
    count, small = parameters_of("resnet50w4")
    for precision in ("fp32", "fp16"):
        needs = [peak_bytes(count, small, stage, 64, precision, "lars", gathered_twice=False) for stage in range(4)]
        assert needs == sorted(needs, reverse=True)
        # in fp32 stage 0 has no flat copy of the gradients, so stage 3 saves less
        assert needs[3] < needs[0] / (4 if precision == "fp16" else 3)


def test_a_mistake_is_one_line_and_code_2():
    process = run_module("perf.memory", "--ranks", "0")
    assert (process.returncode, process.stderr) == (
        2,
        "swave: argument --ranks: 0: expected an integer of at least 1\n",
    )

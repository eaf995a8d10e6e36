"""perf.gpu_check without a GPU: its plan, its record and page, and its cases on a CPU at toy size."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

from config.recipe import ROOT
from perf.gpu_check import record, verdict
from perf.gpu_check.__main__ import check
from perf.gpu_check.plan import PART_SECONDS, PARTS, Case, Part
from perf.gpu_check.setup import Setup
from perf.gpu_check.speed import step_rows
from perf.step.roofline import work_of
from support.programs import run_module

ABOUT = {"device": "NVIDIA H200", "gpus": 1, "batch": 128, "cuda": "13.0", "versions": {"torch": "2.11.0"}}
TINY = (
    *("crops.global.size=32", "crops.local.size=16", "swav.queue.length=0", "model.backbone=resnet"),
    *("model.options.block=basic", "model.options.layers=[1,1]", "model.options.base_width=8"),
)
TOY = Setup(
    gpus=1, batch=4, on_gpu=False, changes=(*TINY, "model.prototypes=30"), states=1, steps=3, images=8, seconds=0.1
)


# ---------------------------------------------------------------------------------------------- the plan
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_is_one_line_and_code_2():
    process = run_module("perf.gpu_check")
    line = "swave: gpu-check needs a GPU, and no GPU is visible; --explain needs none\n"
    assert (process.returncode, process.stderr) == (2, line)


def test_it_explains_each_part_without_a_gpu_and_without_torch():
    program = "import sys; from perf.gpu_check.__main__ import main; main(['--explain']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    *lines, total, has_torch = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [part.name for part in PARTS]
    assert all("min" in line for line in lines) and total.startswith("all") and has_torch == "False"


@pytest.mark.parametrize("gpus", [1, 8])
def test_a_part_takes_eight_minutes_at_most(gpus):
    for part in PARTS:
        assert sum(case.seconds for case in part.cases(Setup(gpus))) <= PART_SECONDS, part.name


# ---------------------------------------------------------------------------------------------- the record
def parts_of(calls, **measures):
    """A part "one" with a case for each of `measures`, which notes its call."""

    def case(name, measure):
        def called(limit):
            calls.append(name)
            return measure()

        return Case(name, 10, called)

    return [Part("one", "something", lambda _: [case(name, measure) for name, measure in measures.items()])]


def good():
    return [{"images_per_second": 5.0, "holds": True}]


def bad():
    raise RuntimeError("exit codes [1]")


def test_a_second_start_measures_only_what_is_missing(tmp_path):
    path, calls = tmp_path / "gpu.json", []

    def stop():
        raise KeyboardInterrupt

    for third in (stop, good):
        results = record.opened(path, ABOUT)
        parts = parts_of(calls, first=good, second=good, third=third)
        try:
            record.measure(results, parts, TOY, partial(record.write, path, results))
        except KeyboardInterrupt:
            calls.append("stopped")
    assert calls == ["first", "second", "third", "stopped", "third"]
    rows = json.loads(path.read_text())["parts"]["one"]
    assert [row["case"] for row in rows] == ["first", "second", "third"]


def test_a_case_that_fails_hides_no_other_and_is_measured_again(tmp_path):
    path, calls = tmp_path / "gpu.json", []
    results = record.opened(path, ABOUT)
    for measure in (bad, good):
        record.measure(results, parts_of(calls, first=measure, second=good), TOY, lambda: None)
        if measure is bad:
            lines = verdict.problems({**results, "parts": {"step": results["parts"]["one"]}})
            assert lines[0] == "step: first: RuntimeError: exit codes [1]"
    assert calls == ["first", "second", "first"]
    assert all(row["holds"] for row in results["parts"]["one"])


def test_no_case_begins_that_would_end_too_late(tmp_path, monkeypatch):
    calls, results = [], record.opened(tmp_path / "gpu.json", ABOUT)
    parts = parts_of(calls, first=good, second=good)
    assert record.measure(results, parts, TOY, lambda: None, seconds=9) == ["one: first", "one: second"]
    monkeypatch.setattr(record, "PART_SECONDS", 9)
    assert record.measure(results, parts, TOY, lambda: None) == ["one: first", "one: second"]
    assert calls == []


def test_another_version_or_batch_begins_a_new_record(tmp_path):
    path = tmp_path / "gpu.json"
    results = record.opened(path, ABOUT)
    results["parts"]["one"] = [{"case": "first", "holds": True}]
    record.write(path, results)
    assert record.opened(path, ABOUT)["parts"]
    assert record.opened(path, ABOUT | {"batch": 64})["parts"] == {}
    path.write_text("[1")
    with pytest.raises(ValueError, match="not a record of gpu-check"):
        record.opened(path, ABOUT)


# ---------------------------------------------------------------------------------------------- the page
def step(case, rate, **more):
    return {"case": case, "images_per_second": rate, "batch": 128, "holds": True, **more}


def feed(case, rate, **more):
    usual = {"backend": "dali", "on_gpu": True, "hw_decoder_load": None, "fancy_upsampling": True, "levels": 0.1}
    return {"case": case, "images_per_second": rate, "holds": True, **usual, **more}


MEASURED = {
    "step": [step("default", 1000.0, codes_share=0.02, codes_collectives=3, waits_in_a_step=[])],
    "loader": [
        feed("dali", 3000.0),
        feed("ffcv", 3500.0, backend="ffcv"),
        feed("ffcv, on the CPU", 900.0, on_gpu=False),
    ],
    "decode": [feed("hw_decoder_load=0.9", 3600.0, hw_decoder_load=0.9), feed("x", 9000.0, fancy_upsampling=False)],
    "settings": [step("stage 0", 1005.0), step("stage 1, overlap_comm=false", 1100.0), step("plain DDP", 800.0)],
    "batch": [step("compile", 1400.0), step("batch 256", 1020.0, batch=256), step("batch 512", 1050.0, batch=512)],
}


def test_the_page_names_each_setting_that_pays():
    changes = dict(verdict.advice(ABOUT | {"parts": MEASURED}))
    assert list(changes) == [
        "engine.stage=1 engine.deepspeed.zero_optimization.overlap_comm=false",
        "engine.compile=true",
        "run.batch_size=512",
        "pipeline.backend=dali pipeline.device=gpu pipeline.hw_decoder_load=0.9",
    ]
    assert changes["engine.compile=true"] == "1,400 instead of 1,000 images/s"
    text = verdict.page(ABOUT | {"parts": MEASURED}, ["tests: pytest -m gpu"])
    assert "# gpu-check: NVIDIA H200" in text and "`engine.compile=true`" in text and "Not measured yet" in text


def test_settings_that_the_page_names_are_settings():
    from config.recipe import load_config

    for words, _ in verdict.advice(ABOUT | {"parts": MEASURED}):
        load_config(["config/folder.yaml", "data.path=x", *words.split()])


def test_cases_that_failed_are_on_the_page_and_disturb_no_advice():
    error = {"case": "default", "error": "RuntimeError: exit codes [1]", "holds": False}
    parts = {part.name: [*MEASURED.get(part.name, []), error] for part in PARTS}
    assert verdict.advice(ABOUT | {"parts": parts}) == verdict.advice(ABOUT | {"parts": MEASURED})
    assert verdict.page(ABOUT | {"parts": parts}, []).count("default: RuntimeError: exit codes [1]") == len(PARTS)
    only_errors = {part.name: [error] for part in PARTS}
    assert verdict.advice(ABOUT | {"parts": only_errors}) == []


def test_gains_within_the_noise_change_nothing():
    same = {"step": [step("default", 1000.0)], "settings": [step("stage 0", 1020.0)], "batch": [step("compile", 990.0)]}
    assert verdict.advice(ABOUT | {"parts": same}) == []
    assert verdict.advice(ABOUT | {"parts": {}}) == []


def test_waits_deviations_and_missed_goals_do_not_hold():
    failed = {
        "step": [step("default", 1200.0, holds=False, waits_in_a_step=["stage_1_and_2.py:1028", "a.py:1", "a.py:1"])],
        "numerics": [{"case": "bf16, a long run", "holds": False, "loss_deviation": 0.5}],
    }
    lines = verdict.problems(ABOUT | {"parts": failed})
    assert lines[0] == "step: default: the host waits at stage_1_and_2.py:1028, a.py:1 (2 times)"
    assert lines[1].startswith("numerics: bf16, a long run")
    assert lines[2].startswith("images/s of a GPU: 1200")
    assert verdict.advice(ABOUT | {"parts": failed})[-1][0] == "engine.precision=fp32"
    assert "all-reduces" not in str(lines)
    assert any(line.startswith("codes' share") for line in verdict.problems(ABOUT | {"parts": MEASURED}))


def giving(of_parts):
    """Parts with a case for each of these rows, which gives it."""

    def case(row):
        return Case(row["case"], 1, lambda limit: [row])

    return [Part(name, "", lambda _, rows=rows: [case(row) for row in rows]) for name, rows in of_parts.items()]


TOO_SLOW = "images/s of the fastest loader for a GPU: 1390, the goal is at least 1,400, which the fastest step takes"


@pytest.mark.parametrize(("rate", "lines"), [(1390.0, [TOO_SLOW]), (1410.0, [])])
def test_a_loader_slower_than_the_step_fails_the_check(tmp_path, monkeypatch, rate, lines):
    """On the page, in the JSON and as the exit code, also of a later start that measures nothing. A loader counts if
    its crops are as they should be."""
    other_crops = feed("x", 9000.0, fancy_upsampling=False)
    measured = {
        "step": [step("default", 1300.0)],
        "loader": [feed("dali", 900.0), feed("ffcv", rate, backend="ffcv")],
        "decode": [other_crops],
        "batch": [step("compile", 1400.0)],
    }
    monkeypatch.setattr("perf.gpu_check.__main__.PARTS", giving(measured))
    path = tmp_path / "gpu.json"
    for _ in range(2):
        code = check(path, ABOUT | {"device": "a GPU"}, TOY, list(measured), False, float("inf"))
        assert code == (1 if lines else 0)
        assert json.loads(path.read_text())["problems"] == lines
        failed = path.with_suffix(".md").read_text().split("## Does not hold")[1].split("##")[0]
        assert failed.strip() == (f"- {TOO_SLOW}" if lines else "- Nothing of what was measured.")
    wrong_crops = feed("wrong", 9000.0, holds=False)
    found = verdict.problems(ABOUT | {"device": "a GPU", "parts": measured | {"decode": [wrong_crops]}})
    assert found == ["decode: wrong: beyond its limit, see below", *lines]


# ---------------------------------------------------------------------------------------------- the cases, on a CPU
def chosen(part, names):
    return Part(part.name, part.shows, lambda setup: [case for case in part.cases(setup) if case.name in names])


@pytest.mark.slow(seconds=60)
def test_its_cases_run_on_a_cpu_at_toy_size(tmp_path, monkeypatch):
    """A slip in them must not cost time on a GPU. Left out: what compiles, and fp16, which a CPU does not have."""
    names = {
        "step": ["default"],
        "loader": ["dali", "ffcv"],
        "decode": ["without fancy upsampling"],
        "numerics": ["bf16, a long run", "fp32, stages"],
        "settings": ["plain DDP"],
    }
    parts = [chosen(part, names[part.name]) for part in PARTS if part.name in names]
    monkeypatch.setattr("perf.gpu_check.__main__.PARTS", parts)
    monkeypatch.setattr(record, "PART_SECONDS", float("inf"))  # other work may make this machine slow
    monkeypatch.setattr(record, "LONGEST", 20.0)
    path, setup = tmp_path / "gpu.json", replace(TOY, folder=str(tmp_path))
    code = check(path, ABOUT | {"device": "a CPU"}, setup, list(names), False, float("inf"))
    rows = {part: found for part, found in json.loads(path.read_text())["parts"].items()}
    assert [(part, row["case"]) for part, found in rows.items() for row in found if "error" in row] == []
    assert {part: len(found) for part, found in rows.items()} == {
        "step": 1, "loader": 2, "decode": 1, "numerics": 4, "settings": 1
    }  # fmt: skip
    assert rows["step"][0]["images_per_second"] > 0 and rows["step"][0]["share_of_roofline"] > 0
    assert rows["step"][0]["waits_in_a_step"] == []
    assert rows["loader"][0]["images_per_second"] > 0 and rows["loader"][0]["levels"] == 0
    assert "does a step run" in path.with_suffix(".md").read_text()
    loader, step = (max(row["images_per_second"] for row in rows[part]) for part in ("loader", "step"))
    assert code == int(rows["step"][0]["codes_share"] > verdict.MAX_CODES_SHARE or loader < step)


@pytest.mark.slow
def test_a_step_in_which_deepspeed_waits_does_not_hold():
    (row,) = step_rows(TOY, 600.0, stage=1, more=("engine.comms_logger=true",))
    assert row["waits_in_a_step"] and not row["holds"]


@pytest.mark.slow
def test_cases_of_several_gpus_run_on_two_cpu_ranks():
    (part,) = (part for part in PARTS if part.name == "ranks")
    for case in part.cases(replace(TOY, gpus=2)):
        rows = case.measure(limit=600.0)
        assert rows and all(row["holds"] for row in rows), rows


def test_work_of_resnet50_is_the_published_one():
    """facts: 4.087 G multiply-adds and 11.1 M convolution outputs for an image of 224 pixels."""
    from model.backbone import build_backbone

    with torch.device("meta"):
        work = work_of(build_backbone("resnet50"), [(1, 224)], torch.device("meta"))
    assert work.products == pytest.approx(4.087e9, rel=0.01)
    assert work.elements == pytest.approx(11.1e6, rel=0.01)

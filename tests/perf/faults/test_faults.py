"""A fault of some kinds, tried as `make faults` tries all of them; and what the campaign notices and writes."""

import importlib
import json
from functools import reduce

import pytest

from perf.faults.__main__ import all_faults, main
from perf.faults.disks import ROWS
from perf.faults.fault import ENDED, Fault, carry_out
from perf.faults.kills import PHASES
from perf.faults.needs import lacking
from perf.faults.output import line, markdown, read, write
from perf.faults.place import Ended
from perf.faults.remote import FETCHING, KEEPING
from perf.faults.snapshots import Snapshots

SHORT = [fault for fault in all_faults() if fault.short]


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    return Snapshots(tmp_path_factory.mktemp("faults"))


@pytest.mark.slow(seconds=15)
@pytest.mark.parametrize("fault", SHORT, ids=lambda fault: fault.name)
def test_a_fault_costs_nothing_that_was_saved(snapshots, fault):
    if reason := lacking(fault.needs):
        pytest.skip(reason)
    row = carry_out(fault, snapshots)
    assert row["holds"], row["wrong"]


@pytest.mark.slow
def test_another_code_line_and_result_are_noticed(snapshots):
    def other_seed(place, program):
        ended = place.start([*program.arguments(place), "run.seed=6"]).end()
        return Ended(ended.code, ended.output + "Traceback (most recent call last):\n")

    wrong = carry_out(Fault("kind", "another run", other_seed, 3, "no such line", ENDED), snapshots)["wrong"]
    starts = [problem.split(":")[0][:11] for problem in wrong]
    assert starts == ["exit code 0", "no line lik", "a traceback", "another res"]


def test_all_faults_have_names_of_their_own_and_there_are_many():
    names = [fault.name for fault in all_faults()]
    assert len(set(names)) == len(names) >= 150
    assert len(SHORT) == 4


@pytest.mark.parametrize("point", sorted({*(row[1] for row in PHASES), *(row[3] for row in ROWS), FETCHING, KEEPING}))
def test_a_point_is_a_function_of_swave(point):
    module, _, path = point.partition(":")
    assert callable(reduce(getattr, path.split("."), importlib.import_module(module)))


def test_the_table_is_written_after_each_row_and_read_again(tmp_path):
    one, two, three = all_faults()[:3]
    row = {"code": 1, "sees": "a | b `c`", "lost": "nothing", "restart": "x", "holds": True, "wrong": []}
    report = {one.name: row, two.name: {"skipped": "needs root", "holds": False, "wrong": []}, "gone": row}
    write(report, [one, two, three], tmp_path / "x.json", tmp_path / "x.md")
    assert read(tmp_path / "x.json") == {name: {"name": name, **report[name]} for name in (one.name, two.name)}
    page = (tmp_path / "x.md").read_text()
    assert "**1 of 1 faults hold; 1 were skipped, 1 not tried yet.**" in page
    assert "`a / b 'c'`" in page and "skipped: needs root" in page
    assert "NO: bad" in line(one, row | {"holds": False, "wrong": ["bad"]})
    assert read(tmp_path / "absent.json") == {}
    assert markdown({}, [one]).count("\n") > 5


def test_rows_that_hold_are_not_tried_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SWAVE_FAULTS", "1")
    rows = [{"name": fault.name, "holds": True, "wrong": []} for fault in all_faults()]
    (tmp_path / "x.json").write_text(json.dumps({"rows": rows}))
    files = ["--json", str(tmp_path / "x.json"), "--page", str(tmp_path / "x.md")]
    assert main(files) == 0
    assert "0 of 0 faults hold" in capsys.readouterr().out
    assert main(["--only", "(", *files]) == 2
    assert main(["--json", "/no/such/folder/x"]) == 2

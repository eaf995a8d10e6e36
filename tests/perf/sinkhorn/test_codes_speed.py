"""The benchmark of the codes: its figures are consistent; mistakes give one line and exit code 2."""

import json
from pathlib import Path

import pytest
import torch

from perf.sinkhorn.__main__ import main
from perf.sinkhorn.device import compare, eagerly
from perf.sinkhorn.textbook import textbook_codes

SMALL = ["--against-textbook", "--prototypes", "40", "--batch", "8", "--rounds", "2", "--calls", "2"]


def test_figures_of_one_rank_and_two(tmp_path: Path) -> None:
    path = tmp_path / "codes.json"
    assert main([*SMALL, "--threads", "1", "--ranks", "1,2", "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert [(row["ranks"], row["threads"]) for row in report["measured"]] == [(1, 1), (2, 1)]
    for row in report["measured"]:
        assert (row["plain_all_reduces"], row["ours_all_reduces"]) == (8, 3)
        assert row["difference"] < 1e-5 and len(row["rounds"]["ours_ms"]) == 2
        ratios = sorted(a / b for a, b in zip(row["rounds"]["plain_ms"], row["rounds"]["ours_ms"], strict=True))
        assert ratios[0] <= row["faster"] <= ratios[1]
    assert report["agree"] and report["settings"]["prototypes"] == 40 and report["machine"]["cores"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "--batch=0: give 1 or more"),
        (["--threads", "1,x"], "--threads=1,x: give whole numbers from 1 with commas between them, as in 1,2"),
        (["--ranks", "0"], "--ranks=0: give whole numbers from 1 with commas between them, as in 1,2"),
        (["--json", "no/such/a.json"], "--json=no/such/a.json: there is no folder no/such"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--against-textbook", *arguments]) == 2
    assert capsys.readouterr().err == f"swave: {message}\n"


def test_the_textbook_s_codes_balance_prototypes_and_samples() -> None:
    codes = textbook_codes(torch.rand(2, 12, 5, dtype=torch.float64), 0.5, 60)
    torch.testing.assert_close(codes.sum(dim=-1), torch.ones(2, 12, dtype=torch.float64))
    torch.testing.assert_close(codes.sum(dim=-2), torch.full((2, 5), 12 / 5, dtype=torch.float64))


def test_ways_of_the_gpu_check_that_a_cpu_has_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perf.sinkhorn.device.ways", lambda _device: {"eager": eagerly})
    (row,) = compare(8, torch.device("cpu"), prototypes=40)
    assert row["holds"] and row["min"] <= row["ms"] <= row["max"]

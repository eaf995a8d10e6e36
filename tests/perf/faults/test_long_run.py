"""The figures of a long run: memory, files, threads, step time, and how often each image was drawn."""

import json

import pytest
from PIL import Image

from perf.faults.long_run import KEPT, Sample, figures, main, thinned


def samples(count, slope=0.0, files=9, slower=1.0):
    cpu = [0.1 * step * (1.0 if step < 10 * count // 2 else slower) for step in range(0, 10 * count, 10)]
    more = [files > 9 and i > count / 2 for i in range(count)]
    return [Sample(10 * i, cpu[i], 500 + slope * i / 100, files + more[i], 12) for i in range(count)]


def test_a_level_run_and_a_leak():
    assert figures(samples(100))["level"] and figures(samples(100))["slope"] == 0
    leak = figures(samples(100, slope=3.0))
    assert leak["slope"] == pytest.approx(3.0, abs=0.01) and not leak["level"]
    assert not figures(samples(100, slower=2.5))["level"]
    with pytest.raises(RuntimeError, match="too few"):
        figures(samples(5))


def test_the_report_keeps_samples_of_the_whole_run():
    kept = thinned(samples(1000, slope=1.0))
    assert len(kept) < KEPT and kept[0][0] < 100 and kept[-1][0] > 9900
    assert {(files, threads, time) for _, _, files, threads, time in kept} == {(9, 12, 100.0)}


@pytest.mark.slow
def test_a_run_is_watched_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("perf.faults.long_run.SAMPLE", 0.1)
    report, plot = tmp_path / "x.json", tmp_path / "x.png"
    other = {"backend": "ffcv", "samples": thinned(samples(100))}
    report.write_text(json.dumps({"rows": [other]}))
    options = ["--backends", "dali", "--steps", "90", "--minutes", "2", "--json", str(report), "--plot", str(plot)]
    code = main(options)
    kept, row = json.loads(report.read_text())["rows"]
    assert kept == other and code == (0 if row["level"] else 1)
    assert row["steps"] >= 27 and row["saves"] > 5 and row["evaluations"] > 1
    assert row["milliseconds"][0] > 0 and row["threads"][0] > 1 and row["samples"][-1][0] <= 90
    least, most = row["draws"]
    assert most - least <= 1 and 9 * most >= row["steps"]
    assert Image.open(plot).size[0] > 500

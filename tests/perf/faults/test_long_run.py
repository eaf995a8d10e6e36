"""The figures of a long run: memory, files, threads and step time."""

import pytest

from perf.faults.long_run import figures, long_run


def samples(count, slope=0.0, files=9, slower=1.0):
    times = [0.1 * step * (1.0 if step < 10 * count // 2 else slower) for step in range(0, 10 * count, 10)]
    return [(10 * i, times[i], 500 + slope * i / 100, files + (i > count / 2) * (files > 9), 12) for i in range(count)]


def test_a_level_run_and_a_leak():
    assert figures(samples(100))["level"] and figures(samples(100))["slope"] == 0
    leak = figures(samples(100, slope=3.0))
    assert leak["slope"] == pytest.approx(3.0, abs=0.01) and not leak["level"]
    assert not figures(samples(100, slower=2.5))["level"]
    with pytest.raises(RuntimeError, match="too few"):
        figures(samples(5))


@pytest.mark.slow(seconds=20)
def test_a_run_is_watched_to_its_end():
    row = long_run("dali", 300, 240)
    assert row["steps"] >= 27 and row["saves"] > 5 and row["evaluations"] > 1
    assert row["milliseconds"][0] > 0 and row["threads"][0] > 1

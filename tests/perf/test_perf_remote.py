"""perf.remote at toy size: every contender has its figures, and they are consistent."""

import json

import pytest

from perf.remote.__main__ import main


@pytest.mark.slow(seconds=20)
def test_disk_and_caches_take_turns_and_few_bytes_are_fetched_in_vain(tmp_path, capsys):
    words = ["--images", "120", "--seconds", "0.1", "--rounds", "1", "--batch", "16", "--work", str(tmp_path)]
    words += ["--neighbors", "4", "--latency", "1", "--backend", "torchvision", "--json", str(tmp_path / "out.json")]
    assert main(words) == 0
    contenders = json.loads((tmp_path / "out.json").read_text())["contenders"]
    scans = json.loads((tmp_path / "out.json").read_text())["scans"]
    assert scans["decode"]["share_of_bytes"] >= 1 and scans["headers"]["share_of_bytes"] < 0.2
    assert list(contenders) == ["disk", "cache of all", "cache of a tenth", "the same, 4 neighbors"]
    assert all(figures["images_per_second"] > 0 and figures["cpu_ms_per_image"] > 0 for figures in contenders.values())
    assert contenders["disk"]["disk_cpu_over_own"] == 1
    tenth = contenders["cache of a tenth"]
    assert 1 <= tenth["fetched_over_needed"] <= 1.05 and 0 < tenth["requests_per_image"] <= 1
    together = contenders["the same, 4 neighbors"]
    assert together["requests_per_image"] < 0.6 * tenth["requests_per_image"]
    assert together["rows_between"] == 0 < tenth["rows_between"]
    assert "fetched_over_needed" not in contenders["cache of all"]  # the loader reads files
    assert "load" in capsys.readouterr().out

"""The cost of codes over four hosts with delay: measured, and predicted from two of them."""

import json
import subprocess
import sys

import pytest

from config.recipe import ROOT

pytestmark = pytest.mark.slow(seconds=45)


def test_codes_are_measured_and_predicted_on_four_hosts_with_two_delays(hosts_possible, tmp_path):
    flags = "--hosts --budget 30 --rounds 3 --prototypes 30 --batch 4 --iterations 3".split()
    command = [sys.executable, "-m", "perf.sinkhorn", *flags, "--json", str(tmp_path / "figures.json")]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    report = json.loads((tmp_path / "figures.json").read_text())
    for name, delay in (("hosts 1 ms", 0.001), ("hosts 5 ms", 0.005)):
        plain = [row for row in report["all_reduces"] if row["link"] == name and row["ranks"] == 4 and row["bytes"] > 8]
        assert plain and min(row["us"] for row in plain) > 6e6 * delay  # six hops, each with the delay
        tested = [row for row in report["held_out"] if row["link"] == name]
        assert {(row["what"], row["ranks"]) for row in tested} == {("all-reduce", 4), ("codes", 4)}
        assert f"measured: {name}" in {row["link"] for row in report["predicted"]}
    assert not report["left_out"]

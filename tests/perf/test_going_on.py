"""perf.going_on at toy size: a few digits, and weights in place of those of Fashion-MNIST."""

import json

import pytest
import torch
from safetensors.torch import save_file

from config.recipe import load_config
from perf import going_on
from training.build import build_network


@pytest.mark.slow
def test_both_starts_take_the_same_steps_and_a_second_call_repeats_no_run(tmp_path, capsys):
    going_on.write_digits(tmp_path / "digits")
    for path in (tmp_path / "digits").glob("*/*/*.png"):
        if int(path.stem) >= 300:
            path.unlink()
    model = load_config(["config/demo.yaml"]).model
    torch.manual_seed(0)
    save_file(build_network({**model, "heads": 1}).backbone.state_dict(), tmp_path / "weights.safetensors")
    words = ["--epochs", "2", "--seeds", "3", "--weights", str(tmp_path / "weights.safetensors")]
    arguments = [*words, "--work", str(tmp_path), "--json", str(tmp_path / "out.json")]
    assert going_on.main(arguments) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert [(row["start"], row["seed"], row["steps"]) for row in report["rows"]] == [
        ("weights", 3, 6),
        ("random", 3, 6),
    ]
    assert all(0 < row["knn"] <= 1 and row["cpu_seconds"] > 0 for row in report["rows"])
    assert "of 1 seeds" in capsys.readouterr().out
    times = [path.stat().st_mtime_ns for path in tmp_path.glob("*/metrics.jsonl")]
    assert going_on.main(arguments) == 0
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == report["rows"]
    assert [path.stat().st_mtime_ns for path in tmp_path.glob("*/metrics.jsonl")] == times

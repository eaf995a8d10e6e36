"""Runs killed at random times end with the weights of an undisturbed run; `make kill-check KILLS=200` runs longer."""

import json
import os
import shutil

import pytest
from safetensors.torch import load_file, save_file

from perf.kill_check import Run, check, make_recipe, same_bits


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bits_at_each_stage():
    rows = check(((1, 0), (2, 2), (2, 3)), kills=4, seed=2, progress=False)
    assert [row["kills"] for row in rows] == [2, 1, 1]
    assert all(row["holds"] for row in rows), json.dumps(rows)  # as text, which pytest does not shorten


@pytest.mark.slow
def test_killed_runs_on_a_web_server_end_with_the_bits_of_a_run_on_the_disk():
    saved = []
    case = {"cases": ((2, 1),), "kills": 1, "seed": 3, "progress": False, "remote": True, "save": saved.append}
    (row,) = check(**case)
    assert row["kills"] == 1 and row["runs"] and row["holds"], row
    assert len(saved) == row["runs"] and saved[-1] == [row]
    assert check(**case, rows=[row]) == [row] and len(saved) == row["runs"]  # nothing is left to do


@pytest.mark.slow
def test_a_changed_bit_is_noticed_and_a_failed_run_raises_an_error(tmp_path):
    recipe, environment = make_recipe(tmp_path), dict(os.environ)
    run = Run(1, 0, recipe, tmp_path / "one")
    run.end()
    assert dict(os.environ) == environment
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    assert same_bits(tmp_path / "one", tmp_path / "other")
    (file,) = (tmp_path / "other" / "checkpoints" / "step-000000027").glob("rank-*.safetensors")
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] += 1e-3
    save_file(tensors, file)
    assert not same_bits(tmp_path / "one", tmp_path / "other")
    recipe.write_text(recipe.read_text().replace("epochs: 3", "epochs: -3"))
    with pytest.raises(RuntimeError, match=r"exit codes \[2\].*run.epochs=-3"):
        Run(1, 0, recipe, tmp_path / "wrong").end()

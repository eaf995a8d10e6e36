"""perf.profile=true in train.py, through the deepspeed launcher on two processes."""

import json
import os
import subprocess
import sys

import pytest

from config.recipe import ROOT, ConfigError, load_config
from perf.kill_check import make_recipe
from support.forks import Script
from training.profiling.timeline import PHASES

SETTINGS = "run.epochs=1 checkpoint.every=never data.max_bad_fraction=0.5 engine.stage=1".split()


def train(recipe, run, *settings):
    """Run two processes under the deepspeed launcher; their output."""
    launcher = [str(ROOT / ".venv" / "bin" / "deepspeed"), "--num_gpus", "2", "--no_local_rank"]
    command = [sys.executable, *launcher] if os.path.exists(launcher[0]) else ["deepspeed", *launcher[1:]]
    done = subprocess.run(
        [*command, str(ROOT / "train.py"), str(recipe), f"run.directory={run}", *SETTINGS, *settings],
        cwd=ROOT, env=os.environ | {"DS_ACCELERATOR": "cpu"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow(seconds=15)
def test_a_run_profiles_its_own_steps_on_all_ranks_and_goes_on(tmp_path):
    recipe, run = make_recipe(tmp_path), tmp_path / "run"
    output = train(recipe, run, "perf.profile=true", "perf.steps=4", "perf.skip=2")
    profile = json.loads((run / "profile.json").read_text())
    assert (profile["steps"], profile["ranks"]) == (4, 2)
    assert tuple(profile["shares"]) == PHASES and sum(profile["shares"].values()) == pytest.approx(1)
    assert [row["rank"] for row in profile["per_rank"]] == [0, 1]
    assert {row["kind"]: row["count"] for row in profile["collectives"]}["codes"] == 3
    events = json.loads((run / "profile-trace.json").read_text())["traceEvents"]
    assert {event["pid"] for event in events if event["ph"] == "X"} == {0, 1}
    assert output.count("profile of 4 steps") == 1  # rank 0 alone
    assert "rank" in output and profile["verdict"] in output
    assert json.loads((run / "summary.json").read_text())["steps"] == 9


@pytest.mark.slow(seconds=5)
def test_a_run_too_short_to_profile_says_so(tmp_path):
    recipe, run = make_recipe(tmp_path), tmp_path / "run"
    settings = [str(recipe), f"run.directory={run}", *SETTINGS, "perf.profile=true", "perf.skip=9"]
    output, _ = Script(ROOT / "train.py", settings, tmp_path / "output", ranks=2).communicate(timeout=120)
    assert "perf.profile: nothing to profile: perf.skip leaves none of this run's 9 steps" in output
    assert not (run / "profile.json").exists()


@pytest.mark.parametrize("setting", ["perf.steps=0", "perf.skip=-1", "perf.profile=1", "perf.step=3"])
def test_wrong_settings_are_refused(setting):
    with pytest.raises(ConfigError, match=setting.split("=")[0]):
        load_config([str(ROOT / "config" / "demo.yaml"), setting])

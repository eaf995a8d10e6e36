"""Where no GPU is visible, ranks are forked from a launcher that has imported what their program imports."""

import base64
import json
import os
import subprocess
import sys

import pytest

from config.recipe import ROOT

PROGRAM = """
import gc, json, os, sys
found = "colorsys" in sys.modules

def later():
    import colorsys

words = [sys.argv[1:], os.environ["RANK"], os.environ["WORLD_SIZE"], found, gc.get_freeze_count() > 100_000, __name__]
sys.stdout.write(json.dumps(words) + "\\n")  # at once: the other rank writes there too
sys.exit(3 * (os.environ["RANK"] == "1"))
"""


@pytest.mark.slow(seconds=5)
@pytest.mark.parametrize("gpus", [0, 2])
def test_ranks_are_forked_unless_there_are_gpus(tmp_path, gpus):
    """CUDA does not survive a fork. Collectors of garbage in forked ranks leave the launcher's modules alone."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n" + "echo NVIDIA H100\n" * gpus + f"exit {int(not gpus)}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    world = base64.urlsafe_b64encode(json.dumps({"node0": ["0", "1"]}).encode()).decode()
    options = ["--log_level", "critical", "--no_local_rank", "--world_info", world, "--master_port", "29511"]
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "DS_LOG_LEVEL": "error"}
    done = subprocess.run(
        [sys.executable, "-m", "launch.ranks", *options, str(tmp_path / "program.py"), "a b", "c=d"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    ranks = sorted(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    assert ranks == [[["a b", "c=d"], rank, "2", not gpus, not gpus, "__main__"] for rank in "01"]

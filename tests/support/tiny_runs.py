"""Tiny runs of train.py: forked from a server that has imported everything, or as a user starts them."""

import json
import os
import shutil
import signal
import subprocess

import numpy as np

from config.recipe import ROOT
from support.forks import Script
from support.photos import write_folder
from support.programs import wait_for_steps

RECIPE = """
run: {epochs: 3, batch_size: 8, log_every: 1, seed: 5}
checkpoint: {every: 2 steps}
crops:
  global: {count: 2, size: 16, scale: [0.3, 1.0]}
  local: {count: 2, size: 8, scale: [0.1, 0.4]}
pipeline: {backend: dali}
model:
  backbone: resnet
  options: {block: basic, layers: [1, 1], base_width: 8, stem: small, stem_stride: 2}
  hidden_dim: 16
  embedding_dim: 8
  prototypes: 12
swav: {freeze_prototypes: 4, queue: {length: 16, start_epoch: 0}}
optimizer: {base_lr: 0.5, warmup_epochs: 0}
evaluation: {size: 16, batch_size: 32, watched: 0}
"""


def make_workplace(root, more=""):
    """A recipe (with settings `more`) and 68 noisy images of two classes that differ in brightness."""
    noise = np.random.default_rng(1)
    images = [noise.integers(0, 128, (20, 20, 3)) + 100 * (index % 2) for index in range(68)]
    write_folder(root / "images", [image.astype(np.uint8) for image in images])
    (root / "tiny.yaml").write_text(RECIPE + more + f"data: {{path: {root}/images, cache: {root}/tables}}\n")
    return root


def train(workplace, name, *settings, launcher=(), ranks=1, environment=None, wait=True):
    """train.py on forked processes, or, with `launcher`, started by that command (python itself: [sys.executable]).

    The output, or without `wait` the process (forks.Script or Popen).
    """
    arguments = [str(workplace / "tiny.yaml"), f"run.directory={workplace / name}", *settings]
    if not launcher:
        output = workplace / f"output-{len(list(workplace.glob('output-*')))}"
        process = Script(ROOT / "train.py", arguments, output, ranks, environment)
    else:
        process = subprocess.Popen(
            [*launcher, str(ROOT / "train.py"), *arguments],
            cwd=ROOT,
            env=os.environ | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    if not wait:
        return process
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return output


def losses(workplace, name):
    lines = [json.loads(line) for line in (workplace / name / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def kill(process):
    if isinstance(process, Script):
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def interrupted(workplace, name, copy, step):
    """Copy a run's directory to the state that a kill after the checkpoint of `step` leaves."""
    shutil.copytree(workplace / name, workplace / copy)
    (workplace / copy / "summary.json").unlink()
    for path in (workplace / copy / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)


def wait_for_step(workplace, name, step, process):
    wait_for_steps(workplace / name, step, process)

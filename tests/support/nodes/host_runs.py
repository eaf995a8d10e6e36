"""Starts, observes and ends `make train` on the hosts of perf.virtual_cluster."""

import contextlib
import json
import time

import psutil

from config.recipe import ROOT
from perf.kill_check import make_recipe
from support.programs import rank_of, words_of


class Run:
    """A `make train` on the hosts, started from the first one."""

    def __init__(self, hosts, folder, name, *settings, nodes=4, variables=(), checkout=ROOT):
        (folder / "hosts").write_text("".join(f"{host} slots=1\n" for host in hosts.names))
        self.hosts, self.directory, self.output_file = hosts, folder / name, folder / f"{name}.output"
        recipe = folder / "tiny.yaml"
        if not recipe.exists():
            make_recipe(folder)
        arguments = " ".join([f"run.directory={self.directory}", *settings])
        command = ["make", "train", f"NODES={nodes}", f"HOSTFILE={folder}/hosts", f"CONFIG={recipe}", *variables]
        with self.output_file.open("w") as output:
            self.process = hosts.run(0, [*command, f"ARGS={arguments}"], cwd=checkout, stdout=output, stderr=output)

    @property
    def output(self):
        return self.output_file.read_text()

    @property
    def losses(self):
        return losses(self.directory)

    def wait_for(self, condition, longest=480.0):
        """Wait until `condition(self)` is true; returns the seconds that this takes."""
        begun = time.monotonic()
        while not condition(self):
            assert time.monotonic() < begun + longest and self.process.poll() is None, self.output
            time.sleep(0.05)
        return time.monotonic() - begun

    def steps(self, count):
        return self.wait_for(lambda run: len(run.losses) >= count)

    def top(self):
        """The process of launch.start, for signals: make does not pass them on."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return next(child for child in children if "launch.start" in words_of(child))

    def end(self, longest=400.0):
        """Wait for the end; the exit code (make's: 2 for every failure). Fails if a process is left on any host."""
        code = self.process.wait(timeout=longest)
        self.gone(range(len(self.hosts.names)))
        return code

    def gone(self, indices, longest=30.0):
        """Wait until no process of the run is left on these hosts; returns the seconds that this takes."""
        begun = time.monotonic()
        while any(self.left_on(index) for index in indices):
            assert time.monotonic() < begun + longest, [self.left_on(index) for index in indices]
            time.sleep(0.1)
        return time.monotonic() - begun

    def rank_on(self, index):
        """The training process of a host with one of them, None if it is gone."""
        return next(iter(self.ranks_on(index).values()), None)

    def ranks_on(self, index):
        """Rank -> process id of the training processes of a host."""
        ranks = {}
        for pid, _ in self.left_on(index):
            with contextlib.suppress(psutil.NoSuchProcess):
                ranks[rank_of(psutil.Process(pid))] = pid
        return {rank: pid for rank, pid in ranks.items() if rank is not None}

    def left_on(self, index):
        """The run's processes on a host: (pid, command)."""
        processes = []
        for pid in self.hosts.processes(index):
            try:
                command = psutil.Process(pid).cmdline()
            except psutil.Error:
                continue
            if any(str(self.directory) in word for word in command):
                processes.append((pid, command))
        return processes


def losses(directory):
    file = directory / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("}")]
    return {line["step"]: line["loss"] for line in whole if "loss" in line}


def loader_state(directory):
    newest = directory / "checkpoints" / (directory / "checkpoints" / "latest").read_text().strip()
    return json.loads((newest / "state.json").read_text())["loader"]

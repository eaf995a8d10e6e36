"""`make train NODES=2` in allocations of a real SLURM, whose daemons run on two hosts in network namespaces."""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time

import pytest

from config.recipe import ROOT
from perf.kill_check import make_recipe
from perf.virtual_cluster.hosts import Hosts
from support.nodes.host_runs import Run
from support.nodes.slurm import Slurm, missing

pytestmark = pytest.mark.slow
TRAIN = "make train NODES=2 GPUS=1 CONFIG={recipe} ARGS='{settings}'"
EXPORTS = "MASTER_ADDR=host1 MASTER_PORT=29517 OMP_NUM_THREADS=1 "
SCRIPT = ROOT / "launch" / "slurm.sbatch"


class Shared:
    """A cluster of two hosts with SLURM; `start` starts it unless it is running."""

    def __init__(self, make_folder):
        self.make_folder, self.stack = make_folder, contextlib.ExitStack()
        self.slurm = None

    def start(self):
        if self.slurm is None:
            folder = self.make_folder("slurm")
            hosts = self.stack.enter_context(Hosts(2, folder / "hosts"))
            self.slurm = self.stack.enter_context(Slurm(hosts, folder / "slurm"))
        return self.slurm

    def end(self):
        self.slurm = None
        self.stack.close()


@pytest.fixture(scope="module")
def shared(hosts_possible, tmp_path_factory):
    lack = missing()
    if lack:
        pytest.skip(f"no SLURM here: {lack}")
    cluster = Shared(tmp_path_factory.mktemp)
    yield cluster
    cluster.end()


@pytest.fixture
def slurm(shared):
    """SLURM on two idle hosts, without jobs of an earlier test."""
    started = shared.start()
    yield started
    try:
        started.ask("scancel", "--user=root")
        started.wait_until_idle()
    except RuntimeError:
        shared.end()


@pytest.fixture
def lost_slurm(shared):
    """SLURM for a test that loses a host; the next test gets another cluster."""
    yield shared.start()
    shared.end()


class Job(Run):
    """A command in an allocation of both hosts, from the first one. asked: more options of salloc."""

    def __init__(self, slurm, folder, command, *settings, asked=()):
        self.hosts, self.directory, self.output_file = slurm.hosts, folder / "run", folder / "output"
        self.recipe, self.settings = make_recipe(folder), [f"run.directory={self.directory}", *settings]
        words = command.format(recipe=self.recipe, settings=" ".join(self.settings))
        with self.output_file.open("w") as output:
            allocation = ["salloc", "-N2", *asked, "sh", "-c", words]
            self.process = slurm.run(0, allocation, cwd=ROOT, stdout=output, stderr=output)

    def check_ranks(self):
        """Assert that each host ran one process."""
        lines = [json.loads(line) for line in (self.directory / "metrics.jsonl").read_text().splitlines()]
        times = [line["ranks"] for line in lines if "ranks" in line]
        assert times and all(len(ranks["forward"]) == 2 for ranks in times)
        assert {ranks["slowest"] for ranks in times} <= {"rank 0 on host1", "rank 1 on host2"}

    def check_saved_once(self):
        """Assert that a signal saved once, and that the checkpoint holds all steps."""
        assert self.output.count("stopped by a signal, saved") == 1, self.output
        newest = self.directory / "checkpoints" / (self.directory / "checkpoints" / "latest").read_text().strip()
        assert json.loads((newest / "state.json").read_text())["step"] == max(self.losses)


def test_srun_starts_the_nodes_and_a_signal_saves_once_and_plain_srun_goes_on_to_the_end(slurm, tmp_path):
    """A node has all its cores of the job, although each of the job's tasks would get only one."""
    job = Job(slurm, tmp_path, TRAIN, asked=["--ntasks-per-node=2", "--cpus-per-task=1"])
    job.steps(3)
    job.top().send_signal(signal.SIGTERM)
    assert job.end(240) == 0, job.output
    assert "NO CLUSTER" not in job.output and "(2 cores for 1 process here" in job.output
    job.check_saved_once()
    job = Job(slurm, tmp_path, EXPORTS + "srun -N2 -n2 .venv/bin/python train.py {recipe} {settings}")
    assert job.end() == 0, job.output
    assert "resuming from" in job.output and "k-NN accuracy, trained backbone" in job.output
    assert "(1 cores for 1 process here" in job.output
    job.check_ranks()


def hold(pid):
    """Keep a process stopped, even when SLURM continues it to end it: like a process that waits in NCCL for others."""
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.01)


def test_a_killed_rank_is_named_and_ends_one_that_waits_for_it(slurm, tmp_path):
    """In a job step that starts further steps."""
    job = Job(slurm, tmp_path, "srun -N1 -n1 " + TRAIN, "run.epochs=5000")
    job.steps(3)
    ranks = job.ranks_on(0) | job.ranks_on(1)
    threading.Thread(target=hold, args=(ranks[0],), daemon=True).start()
    os.kill(ranks[1], signal.SIGKILL)
    begun = time.monotonic()
    assert job.end(240) != 0
    assert time.monotonic() - begun < 120
    assert job.output.count("swave: rank 1 on host2 died: killed, or crashed without a word") == 1, job.output


def test_the_other_node_goes_on_without_a_lost_one_which_srun_does_not_notice(lost_slurm, tmp_path):
    settings = ["run.epochs=6", "run.batch_size=12", "swav.queue.length=0"]
    elastic = ["launch.restarts=1", "launch.backoff=0", "launch.elastic=true"]
    job = Job(lost_slurm, tmp_path, TRAIN, *settings, *elastic)
    job.steps(3)
    lost_slurm.hosts.kill(1)
    assert job.wait_for(lambda job: "starting again" in job.output) < 120
    assert "swave: host2: no answer for 14 seconds" in job.output
    assert job.process.wait(timeout=400) == 0, job.output
    job.gone([0])
    assert "going on with host1; engine.accumulation=2" in job.output
    assert "resuming from" in job.output and "k-NN accuracy, trained backbone" in job.output


def test_deepspeeds_runner_for_slurm_starts_it_too(slurm, tmp_path):
    job = Job(slurm, tmp_path, TRAIN.replace("train", "train LAUNCHER=slurm"), "run.epochs=1")
    assert job.end() == 0, job.output
    assert "k-NN accuracy, trained backbone" in job.output
    job.check_ranks()


class BatchJob(Job):
    """launch/slurm.sbatch on both hosts, a process each."""

    def __init__(self, slurm, folder):
        super().__init__(slurm, folder, "true")
        self.process.wait()
        self.slurm = slurm
        asked = ["--nodes=2", "--gpus-per-node=0", "--cpus-per-task=2", f"--output={self.output_file}"]
        submit = ["sbatch", "--parsable", *asked, SCRIPT, self.recipe, *self.settings]
        options = {"env": slurm.environment({"GPUS": "1"}), "stdout": subprocess.PIPE, "text": True}
        self.number = slurm.run(0, submit, cwd=ROOT, **options).communicate(timeout=120)[0].strip()
        self.process = slurm.run(0, ["sleep", "infinity"])  # stands in: the batch job is no child of this process

    def state(self):
        return set(self.slurm.ask("scontrol", "show", "job", self.number).split())


@pytest.mark.skipif(not SCRIPT.exists(), reason="no launch/slurm.sbatch")
def test_a_batch_job_whose_time_is_over_is_queued_again_and_goes_on_to_the_end(slurm, tmp_path):
    job = BatchJob(slurm, tmp_path)
    job.steps(3)
    slurm.ask("scancel", "--batch", "--signal=USR1", job.number)  # as --signal=B:USR1@120 does
    job.wait_for(lambda job: {"JobState=PENDING", "Reason=BeginTime", "Restarts=1"} <= job.state(), 240)
    job.check_saved_once()
    assert f"saved; job {job.number} is queued again" in job.output

    # SLURM would wait for two minutes. It refuses a start within the second in which the job was killed.
    time.sleep(3)
    slurm.ask("scontrol", "update", f"JobId={job.number}", "StartTime=now")

    def ended(job):
        state = job.state()
        assert not {"JobState=FAILED", "JobState=NODE_FAIL"} & state, job.output
        return "JobState=COMPLETED" in state

    job.wait_for(ended)
    job.gone([0, 1])
    assert "resuming from" in job.output and "k-NN accuracy, trained backbone" in job.output
    job.check_ranks()

"""Records of a run survive a full disk, and damaged ones are told and made again."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.files import sha256
from config.recipe import ROOT
from pipeline.dataset.table import DatasetError
from support.ranks import run_ranks
from training import rank_status
from training.appended import Appended
from training.checkpoint.save_load import save_checkpoint
from training.distributed import Cluster
from training.loggers.open import Loggers
from training.rank_status import watched
from training.run_directory import Journal, newest_state
from training.stopping import TrainingStopped

SUMMARY = {
    **{"directory": "x", "epochs": 3, "steps": 27, "knn": None, "prototypes_in_use": 1.0, "prototypes": 12},
    **{"code_entropy": 1.0, "code_entropy_limit": 2.0, "mean_loss": 1.0, "images_per_second": 1.0, "seconds": 1.0},
}


def test_what_a_full_disk_refuses_is_written_once_there_is_room(tmp_path):
    said, limits = [], resource.getrlimit(resource.RLIMIT_FSIZE)
    file = Appended(tmp_path / "lines", said.append)
    file.write(b"first\n")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9, limits[1]))  # writing beyond byte 9 fails
        file.write(b"second\n")
        file.write(b"third\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "lines").read_bytes() == b"first\nsec"
    assert len(said) == 1 and said[0].startswith(f"{tmp_path}/lines: File too large; ")
    file.write(b"fourth\n")
    file.close()
    assert (tmp_path / "lines").read_bytes() == b"first\nsecond\nthird\nfourth\n"
    assert len(said) == 1


def test_what_is_lost_in_the_end_is_said():
    said = []
    file = Appended(Path("/dev/full"), said.append)
    file.write(b"line\n")
    file.close()
    assert said[-1] == "/dev/full: the last 5 bytes could not be written"


def test_tensorboard_shows_each_step_once_after_a_restart(tmp_path):
    for first_step, steps in ((1, range(1, 6)), (4, range(4, 8))):
        events = Loggers(["tensorboard"], tmp_path, {}, first_step - 1, print)
        for step in steps:
            events.figures(step, {"loss": step / 2, "ranks": {"spread": 1}, "name": "text"})
        events.close()
        for file in (tmp_path / "tensorboard").glob("events*"):
            file.rename(file.with_name(f"{file.name}.{first_step}"))  # both starts may fall into one second
    read = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert read.Tags()["scalars"] == ["loss"]
    assert [(point.step, point.value) for point in read.Scalars("loss")] == [(step, step / 2) for step in range(1, 8)]


@pytest.mark.parametrize("text", ["", '{"epochs": 3', "\x00\x00", "[]", "{}", json.dumps(SUMMARY | {"mean_loss": "x"})])
def test_a_damaged_summary_is_told_and_the_run_does_not_count_as_done(tmp_path, capsys, text):
    (tmp_path / "summary.json").write_text(text)
    assert not Journal(tmp_path, main=True).finished(config=None)
    assert capsys.readouterr().err.count("summary.json is damaged") == 1


def test_a_summary_of_another_run_does_not_count(tmp_path, capsys):
    step = save_checkpoint(tmp_path / "checkpoints", {"step": 27}, {}, keep=1)
    journal = Journal(tmp_path, main=True)
    for digest, fits in ((sha256(step / "manifest.json"), True), ("0" * 64, False)):
        assert journal._fits(SUMMARY | {"checkpoint": str(step), "manifest": digest}) == fits
    assert "is damaged or another run's; it is made again" in capsys.readouterr().err


def test_the_settings_of_a_checkpoint_count_only_where_they_are_whole(tmp_path):
    state = {"config": {"run": {"seed": 5}}, "images": 64, "digest": "d", "loader": {}}
    for step in (2, 4):
        save_checkpoint(tmp_path, {"step": step, **state, "images": step}, {"own/x": torch.ones(2)}, keep=9)
    assert newest_state(tmp_path)["images"] == 4
    file = tmp_path / "step-000000004" / "state.json"
    file.write_text(file.read_text().replace('"images": 4', '"images": 5'))
    assert newest_state(tmp_path)["images"] == 2
    assert newest_state(tmp_path / "none") is None


def test_a_file_that_cannot_be_written_stops_the_run_in_one_line(tmp_path):
    (tmp_path / "untrained.json").mkdir()
    with pytest.raises(TrainingStopped, match=r"untrained.json.*; repair it, and the same command goes on from here"):
        Journal(tmp_path, main=True).record("untrained.json", {})


def fails_on_main(rank):
    def act():
        raise TrainingStopped("the disk is full")

    with pytest.raises(TrainingStopped, match="the disk is full"):
        Cluster(rank, 2).on_main(act)
    return Cluster(rank, 2).on_main(lambda: f"rank {rank}")


def test_what_rank_0_raises_or_returns_all_ranks_get():
    assert run_ranks([0, 1], fails_on_main) == ["rank 0", "rank 0"]


def test_a_second_ctrl_c_is_one_line(capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    assert watched(interrupted, []) == 130
    assert capsys.readouterr().err.strip() == (
        "swave: ended at once by a second Ctrl-C; the same command resumes from the last checkpoint"
    )


def test_a_signal_that_comes_late_does_not_fail_a_run_that_is_saved():
    code = "import torch, sys; from training.stopping import StopSignal; StopSignal(); print('on', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout.readline() == "on\n"
        process.stdin.write("end\n")
        process.stdin.close()
        while process.poll() is None:  # as from a launcher whose order reaches the nodes one after the other
            process.terminate()
            time.sleep(0.0005)
    assert process.returncode == 0


@pytest.mark.parametrize("error", ["Connection closed by peer [127.0.0.1]:4", "Connection reset by peer"])
def test_the_loss_of_another_process_is_one_line(capsys, error):
    def alone(_):
        raise RuntimeError(error)

    assert watched(alone, []) == 1
    assert capsys.readouterr().err.strip().startswith("swave: another process has ended, so this one cannot go on (")


def test_images_that_an_evaluation_cannot_read_are_one_line(capsys):
    def down(_):
        raise DatasetError("https://host/a.tar: no connection, in 30 tries within 290 s")

    assert watched(down, []) == 1
    assert capsys.readouterr().err.strip() == "swave: https://host/a.tar: no connection, in 30 tries within 290 s"


def test_a_failure_of_one_rank_reaches_its_launcher_also_on_a_full_disk(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(rank_status.WORDS, str(tmp_path))
    os.mkfifo(tmp_path / rank_status.LIFELINE)
    held = os.open(tmp_path / rank_status.LIFELINE, os.O_RDWR)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fails(_):
        resource.setrlimit(resource.RLIMIT_FSIZE, (rank_status.STATUS_BYTES, limits[1]))
        rank_status.tell_failure(TrainingStopped("bad images"), main=False, on_all_ranks=False)
        return 1

    monkeypatch.setattr(rank_status, "_failure", "")
    monkeypatch.setattr(rank_status, "end_with", lambda path: None)
    monkeypatch.setattr(rank_status, "faulthandler", mock.Mock())  # pytest has it
    try:
        assert watched(fails, []) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        os.close(held)
    assert capsys.readouterr().err == "swave: bad images\n"
    status = rank_status.status_of(tmp_path, os.getpid())
    assert (status["code"], status["error"]) == (1, "bad images")

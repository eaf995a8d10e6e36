"""Copying the checkout to the nodes: rsync's arguments, and its effect through a real sshd on this machine."""

import os
import shutil
from pathlib import Path

import pytest

from config.recipe import ROOT, ConfigError
from launch.sync import Source, data_source, main, rsync_command, statistic, sync
from support.nodes.sshd import NEEDS_SSHD
from support.programs import run_module

through_ssh = [
    *NEEDS_SSHD,
    pytest.mark.skipif(shutil.which("rsync") is None, reason="no rsync here (Debian: rsync)"),
]


def with_marks(marks):
    """A decorator that puts several marks on a test."""

    def decorate(test):
        for mark in marks:
            test = mark(test)
        return test

    return decorate


@pytest.fixture
def checkout(tmp_path):
    """A small checkout, and an older copy of it on the node that also holds files of the node."""
    here, there = tmp_path / "my checkout", tmp_path / "node" / "my checkout"
    for path in (
        "train.py",
        "launch/node.py",
        ".venv/lib/x.py",
        "runs/mine/log",
        "data/mine",
        "launch/__pycache__/a.pyc",
    ):
        (here / path).parent.mkdir(parents=True, exist_ok=True)
        (here / path).write_text(f"new {path}")
    os.symlink("/usr/bin/python3", here / ".venv" / "python")
    for path in ("train.py", "old.py", "gone/__pycache__/b.pyc", "gone/b.py", "runs/theirs/log", "data/theirs"):
        (there / path).parent.mkdir(parents=True, exist_ok=True)
        (there / path).write_text(f"old {path}")
        os.utime(there / path, (1e9, 1e9))  # rsync compares size and time
    return here, there


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}


@with_marks(through_ssh)
def test_a_checkout_is_copied_and_the_nodes_own_files_stay(cluster, checkout, capsys):
    here, there = checkout
    ssh = f"ssh -F {cluster}/ssh_config"
    sync(["one"], [Source(here, there)], ssh)
    own = {"runs/theirs/log", "data/theirs"}
    assert files(there) == {"train.py", "launch/node.py", ".venv/lib/x.py", ".venv/python"} | own
    assert (there / "train.py").read_text() == "new train.py" and (there / "runs/theirs/log").read_text().startswith(
        "old"
    )
    assert not (there / "gone").exists()  # although it held a cache
    assert capsys.readouterr().out.startswith("one: 3 files, ")
    sync(["one"], [Source(here, there)], ssh)
    assert capsys.readouterr().out.startswith("one: 0 files, ")


@with_marks(through_ssh)
def test_images_are_copied_to_a_new_folder_and_nothing_is_deleted(cluster, checkout):
    here, there = checkout
    ssh, target = f"ssh -F {cluster}/ssh_config", there / "deep" / "images"
    sync(["one"], [Source(here / "runs", target, mirror=False)], ssh)
    (target / "theirs").touch()
    sync(["one"], [Source(here / "runs", target, False), Source(here / "train.py", there / "x.beton", False)], ssh)
    assert files(target) == {"mine/log", "theirs"} and (there / "x.beton").is_file()


@with_marks(through_ssh)
def test_hosts_that_fail_are_named_and_the_others_get_their_files(cluster, checkout, capsys):
    here, there = checkout
    with pytest.raises(ConfigError, match=r"^nowhere\.invalid: .*nowhere\.invalid"):
        sync(["nowhere.invalid", "one"], [Source(here, there)], f"ssh -F {cluster}/ssh_config")
    assert capsys.readouterr().out.startswith("one: 3 files")


@pytest.mark.skipif(shutil.which("rsync") is None or shutil.which("ssh") is None, reason="no rsync or no ssh here")
def test_a_mistake_in_the_arguments_of_sync_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "hosts").write_text("nowhere.invalid slots=8\n")
    for arguments, path, error in (
        (["missing"], os.environ["PATH"], "HOSTFILE=missing: No such file"),
        ([str(tmp_path / "hosts"), "--data", "nothing"], os.environ["PATH"], "DATA=nothing: there is no such"),
        ([str(tmp_path / "hosts")], os.environ["PATH"], "nowhere.invalid: ssh: Could not resolve"),
        ([str(tmp_path / "hosts")], str(tmp_path), "rsync is not installed"),
    ):
        monkeypatch.setenv("PATH", path)
        done = run_module("launch.sync", *arguments, folder=ROOT)
        assert done.returncode == 2 and done.stderr.startswith(f"swave: {error}") and done.stderr.count("\n") == 1, done


def test_sync_prints_its_help(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0 and "--data" in capsys.readouterr().out


def test_the_arguments_of_rsync(tmp_path, monkeypatch):
    command = rsync_command(Source(tmp_path, Path("/there")), "alice@fe80::1", "ssh -p 2222")
    assert command[-2:] == [f"{tmp_path}/", "alice@[fe80::1]:/there/"]
    assert "--delete" in command and "--exclude=/runs/" in command and "ssh -p 2222 -o BatchMode=yes" in command
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.beton").touch()
    assert data_source(Path("x.beton")) == Source(tmp_path / "x.beton", tmp_path / "x.beton", mirror=False)
    command = rsync_command(data_source(Path("x.beton")), "node1", "ssh")
    assert command[-2:] == [f"{tmp_path}/x.beton", f"node1:{tmp_path}/x.beton"] and "--delete" not in command
    assert statistic("Number of files: 9\nTotal bytes sent: 1,234,567\n", "Total bytes sent") == 1234567

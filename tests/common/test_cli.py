"""One-line errors, exit codes and the version."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from common.cli import EXIT_MISTAKE, Parser, UserError, exit_on_mistake, print_error
from common.versions import version, versions
from config.recipe import ROOT, ConfigError
from pipeline.dataset.table import DatasetError


def test_a_wrong_argument_is_one_line_and_code_2(capsys):
    parser = Parser("python -m something", "What it does.\n\n    kept as it stands")
    parser.add_argument("--count", type=int)
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--count", "many"])
    assert end.value.code == EXIT_MISTAKE == 2
    assert capsys.readouterr().err == "swave: argument --count: invalid int value: 'many'\n"
    assert "\n    kept as it stands" in parser.format_help()


@pytest.mark.parametrize("kind", [UserError, ConfigError, DatasetError, ValueError])
def test_a_users_mistake_is_one_line_and_code_2(capsys, kind):
    with pytest.raises(SystemExit) as end, exit_on_mistake():
        raise kind("data.path=/x:\n  no images")
    assert end.value.code == 2
    assert capsys.readouterr().err == "swave: data.path=/x: no images\n"


def test_only_rank_0_prints_the_error_line(capsys):
    with pytest.raises(SystemExit) as end, exit_on_mistake(speaks=False):
        raise UserError("x")
    assert end.value.code == 2 and capsys.readouterr().err == ""


def test_a_line_below_a_bar_leaves_the_bar(capsys):
    print_error("stopped", below_bar=True)
    assert capsys.readouterr().err == "\nswave: stopped\n"


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), exit_on_mistake():
        raise ZeroDivisionError


def test_train_py_shows_the_version_of_pyproject():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version() == declared == "0.1.0"
    command = [sys.executable, "train.py", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"swave {declared}\n", "")


def test_versions_name_swave_python_and_packages():
    numbers = versions()
    assert numbers["swave"] == version() and numbers["torch"].startswith("2.") and "python" in numbers


def test_a_path_may_start_at_the_home_directory_also_after_an_equals_sign(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    parser = Parser("python -m something")
    parser.add_argument_group("files").add_argument("--test", type=Path)
    assert parser.parse_args(["--test=~/images"]).test == Path("/home/me/images")
    assert parser.parse_args(["--test=/a/~b"]).test == Path("/a/~b")


def test_an_ending_program_does_not_look_for_cycles_in_what_it_has_imported():
    program = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count())); import common.cli"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 1000

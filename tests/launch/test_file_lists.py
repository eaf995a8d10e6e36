"""Lists of the program's folders and files are complete: for the code digest, the image, and the type checker."""

import re
import shutil
import tomllib
from pathlib import Path

import pytest

from config.recipe import ROOT
from launch.node_facts import code_digest, packages

NOT_THE_PROGRAM = {"tests", "docs", "runs", "data", "wheels"}
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))


def folders_with_python(root):
    """Names of all top-level folders of the checkout that hold Python files at any depth, except NOT_THE_PROGRAM."""
    folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))]
    return {path.name for path in folders if next(path.rglob("*.py"), None)} - NOT_THE_PROGRAM


PACKAGES = sorted(folders_with_python(ROOT))


def docker_copies(text):
    """The paths that a Dockerfile's COPY lines take from the checkout."""
    return {word for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for word in line.split()[:-1]}


def test_every_folder_with_python_files_is_a_package():
    assert [path.name for path in packages(ROOT)] == PACKAGES
    assert {"common", "launch", "model", "pipeline", "training"} <= set(PACKAGES)


@pytest.mark.parametrize("name", [*PACKAGES, *SCRIPTS, "config/default.yaml"])
def test_a_change_in_any_package_script_or_recipe_changes_the_code_digest(tmp_path, name):
    """Each in a checkout of its own, since a digest reads all files."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if (ROOT / name).is_dir():
        shutil.copytree(ROOT / name, path, ignore=shutil.ignore_patterns("__pycache__", "results"))
    else:
        shutil.copy(ROOT / name, path)
    unchanged = code_digest(tmp_path)
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        text = file.read_text()
        file.write_text(text + "# changed\n")
        assert code_digest(tmp_path) != unchanged, file
        file.write_text(text)
    assert code_digest(tmp_path) == unchanged


def test_the_image_holds_all_packages_and_scripts():
    copies = docker_copies((ROOT / "launch" / "Dockerfile").read_text())
    assert {*PACKAGES, *SCRIPTS} <= copies
    assert all((ROOT / name).exists() for name in copies)


def test_mypy_checks_all_packages_and_scripts():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert sorted(settings["tool"]["mypy"]["files"]) == sorted([*PACKAGES, *SCRIPTS])


def test_only_one_module_derives_the_checkouts_path_from_its_file():
    """Other modules would give another path once they move to another depth."""
    climbs = re.compile(r"__file__\)(\.resolve\(\)|\.absolute\(\))?\.(parent\.parent|parents\b)")
    files = [*ROOT.glob("*.py"), *(file for package in PACKAGES for file in Path(ROOT / package).rglob("*.py"))]
    (file,) = [file for file in files if climbs.search(file.read_text())]
    assert "ROOT = " in file.read_text()

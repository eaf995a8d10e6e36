"""The key of the compiled kernel's disk cache covers everything that is compiled into it; compiling shows a bar."""

import ast
import re
import shutil
from pathlib import Path

import pytest
from numba import njit

import pipeline.kernel
from common import progress
from config.recipe import ROOT
from pipeline.kernel.channels import driver
from pipeline.kernel.compiling import compiling
from pipeline.kernel.driver import source_digest

FOLDER = Path(pipeline.kernel.__file__).parent
CHANNELS = FOLDER / "channels"


def test_a_change_in_any_kernel_file_changes_the_cache_key(tmp_path):
    copy = shutil.copytree(FOLDER, tmp_path / "kernel")
    unchanged = source_digest(copy)
    assert unchanged == source_digest(FOLDER)
    files = sorted(copy.glob("*.py"))
    names = {"driver.py", "header.py", "decode.py", "planes.py", "hsv.py", "pixels.py", "resample.py", "simd.py"}
    assert names <= {path.name for path in files}
    for path in files:
        text = path.read_text()
        path.write_text(text + "# changed\n")
        assert source_digest(copy) != unchanged, path.name
        path.write_text(text)


@pytest.mark.parametrize(("kernel", "keyed"), [(FOLDER, [FOLDER]), (CHANNELS, [CHANNELS, FOLDER])])
def test_compiled_functions_are_defined_in_the_folders_of_the_key_alone(kernel, keyed):
    """A file elsewhere that numba compiles for a kernel would not be part of its key. keyed: folders that are."""
    assert {path.parent for path in FOLDER.rglob("*.py") if imports_njit(path)} == {FOLDER, CHANNELS}
    compiled = {path for folder in keyed for path in folder.glob("*.py") if imports_njit(path)}
    used = {node.module for path in kernel.glob("*.py") for node in imports(path) if imports_njit(path)}
    files = [ROOT / f"{module.replace('.', '/')}.py" for module in used if module.startswith("pipeline.")]
    assert {path for path in files if path.exists() and imports_njit(path)} < compiled


def test_a_change_in_a_file_of_either_folder_changes_the_key_of_the_channels_kernel(monkeypatch):
    seen = []
    monkeypatch.setattr(driver, "source_digest", lambda folder: seen.append(folder) or "")
    driver.compiled_driver.__wrapped__()
    assert seen == [CHANNELS, FOLDER]


def imports(path):
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]


def imports_njit(path):
    return any(node.module == "numba" and "njit" in {name.name for name in node.names} for node in imports(path))


def test_compiling_shows_a_bar_that_counts_the_kernels_functions_once(capsys, monkeypatch):
    monkeypatch.setattr(progress, "DELAY", 0.0)

    def doubled(x):
        return 2 * x

    doubled.__module__ = "pipeline.kernel.example"
    function = njit(doubled)
    with compiling():
        function(1)
        function(1.0)  # another type
        njit(lambda x: x)(1)  # of another module
    assert re.findall(r"compiling the kernel for this CPU: .* (\d+)/\d\d \[", capsys.readouterr().err)[-1] == "1"
    with compiling():
        function(2)
    assert "1/" not in capsys.readouterr().err

"""The key of the compiled kernel's disk cache covers everything that is compiled into it; compiling shows a bar."""

import ast
import re
import shutil
from pathlib import Path

from numba import njit

import pipeline.kernel
from common import progress
from config.recipe import ROOT
from pipeline.kernel.compiling import compiling
from pipeline.kernel.driver import source_digest

FOLDER = Path(pipeline.kernel.__file__).parent


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


def test_compiled_functions_are_defined_in_the_kernels_folder_alone():
    """A file elsewhere that numba compiles for the kernel would not be part of the key, nor one in a folder below."""
    compiled = {path for path in FOLDER.rglob("*.py") if imports_njit(path)}
    assert {path.parent for path in compiled} == {FOLDER}
    used = {node.module for path in compiled for node in imports(path) if node.module.startswith("pipeline.")}
    files = [ROOT / f"{module.replace('.', '/')}.py" for module in used]
    assert {path for path in files if path.exists() and imports_njit(path)} < compiled


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

"""Rules of the source tree: imports point down without circles, files are small, and each folder states its job."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BELOW = {  # the packages that each package may import
    "common": "",
    "config": "common",
    "model": "common config",
    "pipeline": "common config",
    "training": "common config model pipeline",
    "export": "common config model pipeline training",
    "evaluation": "common config model pipeline training",
    "launch": "common config model pipeline training export evaluation",
    "perf": "common config model pipeline training export evaluation",
    "train": "common config model pipeline training export evaluation",
    "evaluate": "common config model pipeline training export evaluation",
}
MOST_FILES, MOST_LINES, MOST_STORY_LINES = 20, 400, 249


@cache
def python_files():
    """Python files of the repository, relative to its root; without git (in an image) those of the folders."""
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    names = done.stdout.split() if done.returncode == 0 else [str(p.relative_to(ROOT)) for p in ROOT.rglob("*.py")]
    return [
        Path(name)
        for name in dict.fromkeys(names)
        if (ROOT / name).exists() and not name.startswith((".venv", "shared"))
    ]


@cache
def tree_of(path):
    return ast.parse((ROOT / path).read_text())


def source_files():
    return [path for path in python_files() if package_of(path) in BELOW]


def package_of(path):
    return path.parts[0].removesuffix(".py")


def module_of(path):
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imports(tree, at_start_only=False):
    """(line, module, names) of each import; at_start_only: without those in functions and under TYPE_CHECKING."""
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: a relative import; write the whole name"
            yield node.lineno, node.module, [alias.name for alias in node.names]
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        )
        if not (lazy and at_start_only):
            pending += ast.iter_child_nodes(node)


@pytest.mark.parametrize("package", BELOW)
def test_imports_point_down(package):
    allowed = {package, *BELOW[package].split()}
    wrong = [
        f"{path}:{line} imports {module}"
        for path in source_files()
        if package_of(path) == package
        for line, module, _ in imports(tree_of(path))
        if module.split(".")[0] in {*BELOW, "tests", "support"} - allowed
    ]
    assert not wrong, wrong


def test_the_order_of_packages_has_no_circle():
    order = list(TopologicalSorter({name: below.split() for name, below in BELOW.items()}).static_order())
    assert order[:2] == ["common", "config"]
    folders = {path.parts[0] for path in python_files() if len(path.parts) > 1} - {"tests"}
    assert folders | {"train", "evaluate"} == set(BELOW), "a new package needs a place in the order"


@cache
def known_modules():
    return {module_of(path) for path in source_files()}


def needed_modules(path, at_start_only):
    """Our own modules that a file imports; of `from package import module` the module."""
    known = known_modules()
    for _, module, names in imports(tree_of(path), at_start_only):
        inner = {f"{module}.{name}" for name in names} & known
        yield from inner
        if module in known and (len(inner) < len(names) or not names):
            yield module


@pytest.mark.parametrize("at_start_only", [True, False], ids=["at the start", "and in functions"])
def test_modules_do_not_import_each_other_in_a_circle(at_start_only):
    graph = {module_of(path): set(needed_modules(path, at_start_only)) - {module_of(path)} for path in source_files()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def folders_with_python():
    return sorted({path.parent for path in python_files()} - {Path(".")})


@pytest.mark.parametrize("folder", folders_with_python(), ids=str)
def test_a_folder_states_its_job_and_is_small(folder):
    own = [path for path in python_files() if path.parent == folder]
    assert len(own) <= MOST_FILES, f"{folder}: {len(own)} Python files of its own; make folders in it"
    if folder.parts[0] != "tests":
        assert folder / "__init__.py" in own, f"{folder}: no __init__.py"
        docstring = ast.get_docstring(tree_of(folder / "__init__.py")) or ""
        lines = [line for line in docstring.splitlines() if line.strip()]
        assert 2 <= len(lines) <= 5, f"{folder}/__init__.py: say the folder's job in about three lines"


def test_no_module_is_long():
    lengths = {str(path): len((ROOT / path).read_text().splitlines()) for path in python_files()}
    assert not {path: lines for path, lines in lengths.items() if lines > MOST_LINES}
    assert lengths["train.py"] <= MOST_STORY_LINES


@pytest.mark.parametrize("package", ["common", "config"])
def test_the_lowest_packages_load_without_torch(package):
    modules = [module_of(path) for path in source_files() if package_of(path) == package]
    heavy = "[name for name in ('torch', 'numba', 'deepspeed', 'nvidia') if name in sys.modules]"
    code = f"import sys, importlib\nfor name in {modules}: importlib.import_module(name)\nprint({heavy})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    wrong = [
        f"{path}:{line}"
        for path in source_files()
        if package_of(path) == "common"
        for line, module, _ in imports(tree_of(path))
        if module.split(".")[0] == "torch"
    ]
    assert not wrong, wrong


def test_no_two_test_files_have_one_name():
    """pytest imports them by name alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) > 100 and not {name for name in names if names.count(name) > 1}

"""The pages for people: the links, files, modules, functions, settings and make targets in them exist."""

import ast
import re
from functools import cache

import pytest
from omegaconf import OmegaConf

from config.recipe import DEFAULTS, ROOT
from support.documents import GENERATED_PAGES, anchors, command_lines, links, pages, spans

ROOMS = ("common", "config", "model", "pipeline", "training", "export", "evaluation", "launch", "perf", "tests", "docs")
# Paths that commands write.
WRITTEN = re.compile(r"perf/report\.html|perf/results/.*|docs/report.*|tests/results/.*|data/.*")
SUFFIXES = r"\.(?:py|md|yaml|json|jsonl|sh|sbatch|png|ipynb|toml|example|jinja|npz|lock)"
PAGES = [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages()]
PROSE = [page for page in PAGES if page.values[0].name != "CHANGELOG.md"]  # which also names removed files


@pytest.mark.parametrize("page", PAGES)
def test_links_and_anchors_resolve(page):
    for target in links(page.read_text()):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(file.read_text()), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PROSE)
def test_files_that_are_named_exist(page):
    for span in spans(page.read_text()):
        path = re.fullmatch(rf"((?:{'|'.join(ROOMS)})/[\w./-]*{SUFFIXES}|(?:{'|'.join(ROOMS)})/[\w/]*)", span)
        if path and not WRITTEN.fullmatch(span):
            assert (ROOT / span).exists(), f"{page.name} names {span}"


@pytest.mark.parametrize("page", PROSE)
def test_modules_functions_and_settings_that_are_named_exist(page):
    for span in spans(page.read_text()):
        name = re.match(r"[a-z_]\w*(?:\.\w+)+(?=$|=|\()", span)
        if name is None or re.fullmatch(rf".*{SUFFIXES}", name[0]):
            continue
        section = name[0].partition(".")[0]
        if section in ROOMS or section in settings():
            assert is_setting(name[0]) or is_name(name[0]), f"{page.name} names {span}"


@pytest.mark.parametrize("page", PROSE)
def test_make_targets_and_modules_of_commands_exist(page):
    text = page.read_text()
    commands = "\n".join([*command_lines(text), *spans(text)])
    for target in re.findall(r"(?:^|&& )make ([a-z][a-z-]*)", commands, re.MULTILINE):
        assert target in targets(), f"{page.name} names make {target}"
    for module in re.findall(r"python -m ([\w.]+)", commands):
        first = module.partition(".")[0]
        assert first not in ROOMS or module_file(module), f"{page.name} names python -m {module}"


def test_the_readme_has_at_most_200_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_the_start_page_links_to_every_page():
    start = {target.partition("#")[0] for target in links((ROOT / "docs/index.md").read_text())}
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= start | {"index.md"}


def test_generated_pages_are_there():
    assert {page.name for page in (ROOT / "docs").glob("*.md")} >= GENERATED_PAGES


# ---------------------------------------------------------------------------------------------- existing names
@cache
def targets():
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@cache
def settings():
    return OmegaConf.to_container(OmegaConf.load(DEFAULTS))


def is_setting(dotted):
    node = settings()
    for key in dotted.split("."):
        if not isinstance(node, dict):
            return False
        if not node:  # model.options, engine.deepspeed: any key below them
            return True
        if key not in node:
            return False
        node = node[key]
    return True


def module_file(module):
    path = ROOT / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def is_name(dotted):
    """Whether `dotted` is a module, a function, class or constant of a module, or a method."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        file = module_file(".".join(parts[:count]))
        if file is not None:
            return has_name(ast.parse(file.read_text()), parts[count:])
    return False


def has_name(node, names):
    if not names:
        return True
    for item in node.body:
        if isinstance(item, ast.FunctionDef | ast.ClassDef) and item.name == names[0]:
            return len(names) == 1 or (isinstance(item, ast.ClassDef) and has_name(item, names[1:]))
        if names[0] in assigned_names(item):
            return len(names) == 1
    return False


def assigned_names(item):
    targets = item.targets if isinstance(item, ast.Assign) else []
    targets = [item.target] if isinstance(item, ast.AnnAssign) else targets
    return [target.id for target in targets if isinstance(target, ast.Name)]

"""The messages that docs/troubleshooting.md quotes are in the code."""

import ast

import pytest

from config.recipe import ROOT
from support.documents import fences

FOLDERS = ("common", "config", "model", "pipeline", "training", "export", "evaluation", "launch")
QUOTED = [body.strip() for body in fences((ROOT / "docs" / "troubleshooting.md").read_text())]
VARIABLE = "\0"  # stands for a formatted value


@pytest.fixture(scope="module")
def messages():
    """Every text in the code; formatted values are VARIABLE."""
    files = [ROOT / "train.py", *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))]
    return [text for file in files for text in texts(ast.parse(file.read_text()))]


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_is_in_the_code(quoted, messages):
    parts = [part for part in quoted.split("...") if part.strip(" ()")]
    assert any(in_order(parts, text) for text in messages), quoted


def in_order(parts, text):
    """Whether `text` has all parts, one after another."""
    position = 0
    for part in parts:
        position = text.find(part, position) + len(part)
        if position < len(part):
            return False
    return True


def texts(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else VARIABLE for part in node.values)

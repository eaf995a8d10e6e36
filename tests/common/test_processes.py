"""What new processes import, and their environment."""

import os

import pytest

from common.processes import environment, imported_by


def test_the_environment_is_as_before_after_the_block(monkeypatch):
    monkeypatch.setenv("SWAVE_OLD", "1")
    before = dict(os.environ)
    with pytest.raises(KeyError), environment({"SWAVE_OLD": "2", "SWAVE_NEW": "3"}):
        assert (os.environ["SWAVE_OLD"], os.environ["SWAVE_NEW"]) == ("2", "3")
        raise KeyError
    assert dict(os.environ) == before


def test_imports_inside_functions_count_too():
    source = "import a.b\n\ndef f():\n    from c import d\n    if True:\n        import e as g, h\n"
    assert imported_by(source) == ["a.b", "c", "e", "h"]

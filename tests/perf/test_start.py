"""`python -m perf.start`: a waterfall of a start, in which no process imports torch but the launcher, once."""

import pytest

from perf.start.__main__ import start, waterfall
from support.programs import run_module
from support.tiny_runs import make_workplace


@pytest.mark.slow(seconds=8)
def test_a_start_imports_torch_once_and_its_spans_add_up(tmp_path):
    run = start(str(make_workplace(tmp_path) / "tiny.yaml"), [])
    spans = run["spans"]
    assert {"launch.start", "launch.ranks", "rank 0"} <= {span["process"] for span in spans}
    assert [span["process"] for span in spans if span["what"] == "import torch"] == ["launch.ranks"]
    assert not any(span["what"] == "import torch._dynamo" for span in spans)  # two seconds, for engine.compile alone
    assert all(-1 <= span["begin"] <= span["end"] for span in spans)
    last = max(spans, key=lambda span: span["end"])
    assert last["what"] == "first step" and last["end"] == run["seconds"]
    assert 0 < sum(span["cpu"] for span in spans if span["what"] == "import torch") < run["cpu_seconds"]
    lines = waterfall(run).splitlines()
    assert any("launch.ranks   import torch" in line and "#" in line for line in lines)


def test_a_mistake_in_the_recipe_is_one_line():
    done = run_module("perf.start", "no-such-recipe.yaml")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr

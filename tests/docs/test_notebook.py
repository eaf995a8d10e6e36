"""docs/swav_step_by_step.ipynb runs from top to bottom, and its committed outputs are those of a whole run.

To write new outputs: PYTHONPATH=.:tests .venv/bin/python tests/docs/test_notebook.py
"""

import json

import nbformat
import pytest
from nbclient import NotebookClient

from config.recipe import ROOT
from pipeline.dataset.table import DatasetError
from pipeline.fashion_mnist import prepare
from support.odd_images import scene
from support.photos import write_folder

NOTEBOOK = ROOT / "docs" / "swav_step_by_step.ipynb"
PICTURES = 8  # crops, four of the toy, curves of the run, prototypes, curves of the evaluations


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def executed(notebook):
    """The notebook with new outputs; fails with the error of the cell that fails."""
    client = NotebookClient(
        notebook,
        timeout=None,  # a cell takes longer on a busy machine
        kernel_name="python3",
        resources={"metadata": {"path": NOTEBOOK.parent}},
        coalesce_streams=True,
        record_timing=False,
    )
    client.execute()
    for output in outputs(notebook):
        output.get("data", {}).pop("image/jpeg", None)  # PIL's pictures come as PNG too
    return notebook


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Make an executed notebook take seconds; the folder that it writes to."""
    monkeypatch.setenv("SWAVE_NOTEBOOK_SCALE", "small")
    monkeypatch.setenv("SWAVE_NOTEBOOK_WORK", str(tmp_path / "work"))
    return tmp_path / "work"


def pictures(notebook):
    return [output for output in outputs(notebook) if "image/png" in output.get("data", {})]


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def result(notebook):
    """The table of the evaluations."""
    (table,) = (o.data["text/markdown"] for o in outputs(notebook) if "text/markdown" in o.get("data", {}))
    return table


@pytest.mark.slow(seconds=60)
def test_it_runs_on_fashion_mnist(small):
    try:
        prepare(ROOT / "data/fashion-mnist", progress=False)
    except DatasetError as error:
        pytest.skip(f"Fashion-MNIST is neither in data/ nor to be fetched: {error}")
    notebook = executed(read())
    assert len(pictures(notebook)) == PICTURES
    assert any(output.get("text", "").startswith("train: 256 images, T-shirt/top ") for output in outputs(notebook))
    summary = json.loads((small / "run/summary.json").read_text())
    assert f"{100 * summary['knn']:.1f} %" in result(notebook)
    assert summary["epochs"] == 2


@pytest.mark.slow(seconds=60)
def test_it_runs_on_a_folder_of_photographs(tmp_path, small):
    folder = write_folder(tmp_path / "images", [scene(60 + i % 30, 90) for i in range(150)], classes=3)
    notebook = read()
    (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.startswith("FOLDER = None"))
    cell.source = cell.source.replace("FOLDER = None", f"FOLDER = {str(folder)!r}")
    notebook = executed(notebook)
    assert len(pictures(notebook)) == PICTURES
    assert any("class2" in output.get("text", "") for output in outputs(notebook))


def test_its_committed_outputs_are_one_whole_run_without_errors():
    notebook = read()
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert len(pictures(notebook)) == PICTURES
    assert NOTEBOOK.stat().st_size < 1_500_000
    assert str(ROOT) not in NOTEBOOK.read_text()
    assert result(notebook).count("\n| ") == 5  # a line of dashes and four figures


if __name__ == "__main__":
    nbformat.write(executed(read()), NOTEBOOK)

"""Runs on two sources with weights and balanced classes: counts in the log, killed and resumed to the same losses."""

import json

import numpy as np
import pytest

from export.__main__ import export
from support.evaluations import evaluate
from support.photos import write_folder
from support.tiny_runs import RECIPE, kill, losses, train, wait_for_step

pytestmark = pytest.mark.slow(seconds=60)
MIXED = ("data.weights=[1,3]", "data.balance=class", "pipeline.backend=ffcv")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Sources of 36 and 16 images in classes of 24 and 12, and of 8 and 8; a run of three epochs on two ranks."""
    root, noise = tmp_path_factory.mktemp("mixed"), np.random.default_rng(1)
    for folder, count, light in (("one/a", 24, 0), ("one/b", 12, 100), ("two/b", 8, 100), ("two/c", 8, 60)):
        images = [(noise.integers(0, 128, (20, 20, 3)) + light).astype(np.uint8) for _ in range(count)]
        write_folder(root / folder, images)
    data = f"data: {{path: [{root}/one, {root}/two], cache: {root}/tables}}\n"
    (root / "tiny.yaml").write_text(RECIPE.replace("length: 16", "length: 8") + data)
    root.joinpath("output.txt").write_text(train(root, "whole", *MIXED, ranks=2))
    return root


def test_the_log_counts_the_images_of_each_source(workplace):
    """An epoch has six batches of 8 of its 52 images; 13 are of the first source and 39 of the second."""
    said = (workplace / "output.txt").read_text()
    assert "one: 36 images, 13 in an epoch" in said and "two: 16 images, 39 in an epoch, each 2.38 to 2.5 times" in said
    lines = [json.loads(line) for line in (workplace / "whole" / "metrics.jsonl").read_text().splitlines()]
    counts = [(line["images_0"], line["images_1"]) for line in lines if "images_0" in line]
    assert len(counts) == 3
    for first, second in counts:
        assert first + second == 48 and 9 <= first <= 13 and 35 <= second <= 39


def test_a_killed_run_goes_on_to_the_same_losses(workplace):
    process = train(workplace, "killed", *MIXED, ranks=2, wait=False)
    wait_for_step(workplace, "killed", 9, process)
    kill(process)
    train(workplace, "killed", *MIXED, ranks=2)
    whole = losses(workplace, "whole")
    assert len(whole) == 18 and losses(workplace, "killed") == whole


def test_evaluation_takes_the_sources_of_the_run(workplace, tmp_path, capsys):
    options = ("--cache", "none", "--tables", tmp_path, "--json", tmp_path / "x.json")
    result = evaluate(capsys, workplace / "whole", *options)
    export(workplace / "whole", tmp_path / "out", "safetensors")
    assert f"`{workplace / 'one'}, {workplace / 'two'}`, 52 images" in (tmp_path / "out" / "README.md").read_text()
    assert result["data"]["path"] == str([str(workplace / name) for name in ("one", "two")])

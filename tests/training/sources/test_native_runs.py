"""Runs on images of 4 channels of uint16, from tiles to a k-NN score, an export and an evaluation."""

import json

import pytest
import torch
from safetensors import safe_open

from config.recipe import load_config
from evaluation.backbones import open_backbone
from export.__main__ import export
from pipeline.dataset.open import open_splits
from pipeline.stats import rounded, statistics_of
from support.evaluations import evaluate, mistake
from support.native.images import tiles, write_tiles
from support.tiny_runs import RECIPE, kill, losses, train, wait_for_step

pytestmark = pytest.mark.slow(seconds=120)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """68 tiles of two classes that differ in brightness, and a run of three epochs on two ranks."""
    root = tmp_path_factory.mktemp("native")
    write_tiles(root / "images", tiles(68, 20))
    recipe = RECIPE.replace("pipeline: {backend: dali}", "pipeline: {backend: auto}")
    recipe = recipe.replace("watched: 0", "watched: 16")
    (root / "tiny.yaml").write_text(recipe + f"data: {{path: {root}/images, cache: {root}/tables}}\n")
    root.joinpath("output.txt").write_text(train(root, "whole", ranks=2))
    return root


def test_a_run_on_four_channels_ends_with_a_score(workplace):
    summary = json.loads((workplace / "whole" / "summary.json").read_text())
    assert summary["world_size"] == 2 and 0 <= summary["knn"] <= 1
    said = (workplace / "output.txt").read_text()
    assert (workplace / "whole" / "report.html").stat().st_size > 10_000 and "no pictures in the report" not in said
    for words in (
        "4 channels of uint16; 68 images",
        "pipeline.backend=ffcv",
        "model.options.in_chans=4",
        "statistics of",
    ):
        assert words in said


def test_a_killed_run_goes_on_to_the_same_losses_on_two_ranks(workplace):
    process = train(workplace, "killed", ranks=2, wait=False)
    wait_for_step(workplace, "killed", 10, process)
    kill(process)
    train(workplace, "killed", ranks=2)
    whole = losses(workplace, "whole")
    assert len(whole) == 24 and losses(workplace, "killed") == whole


def test_a_checkpoint_knows_channels_mean_and_std(workplace):
    config = load_config([str(workplace / "tiny.yaml")])
    table, _ = open_splits(config.data, progress=False)
    statistics, _ = statistics_of(table, workplace / "tables", progress=False)
    backbone = open_backbone(str(workplace / "whole"))
    assert backbone.inputs.mean == tuple(rounded(statistics.mean))
    assert backbone.inputs.std == tuple(rounded(statistics.std))
    assert backbone.network(torch.zeros(2, 4, 16, 16)).shape == (2, backbone.feature_dim)


@pytest.mark.parametrize("format", ["safetensors", "onnx"])
def test_exports_take_four_channels(workplace, tmp_path, format):
    out = tmp_path / ("out" if format == "safetensors" else "out.onnx")
    export(workplace / "whole", out, format)
    expected = open_backbone(str(workplace / "whole"))
    images = torch.rand(2, 4, 16, 16)
    if format == "safetensors":
        with safe_open(out / "model.safetensors", "pt") as file:
            assert len(json.loads(file.metadata()["mean"])) == 4
        assert "4 channels" in (out / "README.md").read_text()
        again = open_backbone(str(out))
        assert again.weights == expected.weights and again.inputs == expected.inputs
        torch.testing.assert_close(again.network(images), expected.network(images))
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(out)
        said = session.get_modelmeta().custom_metadata_map
        assert tuple(json.loads(said["mean"])) == expected.inputs.mean
        assert tuple(json.loads(said["std"])) == expected.inputs.std
        (features,) = session.run(["features"], {"images": images.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(features), expected.network(images), atol=1e-4, rtol=1e-4)


def test_formats_of_rgb_refuse_in_one_line(workplace, tmp_path):
    with pytest.raises(ValueError, match="format transformers: it is for RGB, and this backbone takes 4 channels"):
        export(workplace / "whole", tmp_path / "out", "transformers")


@pytest.mark.parametrize("command", ["knn", "linear"])
def test_evaluation_takes_the_images_of_the_run(workplace, tmp_path, command, capsys):
    places = ["--cache", "none", "--tables", tmp_path / "tables"]
    more = ["--epochs", 1] if command == "linear" else []
    result = evaluate(capsys, workplace / "whole", *places, *more, "--json", tmp_path / "x.json", command=command)
    assert result["results"][0]["feature_dim"] == 16


def test_evaluation_refuses_images_of_other_channels(workplace, tmp_path, capsys):
    other = write_tiles(tmp_path / "two", tiles(12, 20, channels=2))
    line = mistake(capsys, workplace / "whole", other, "--cache", "none", "--tables", tmp_path / "tables")
    assert "images of 2 channels of uint16, and" in line and "takes 4 channels" in line

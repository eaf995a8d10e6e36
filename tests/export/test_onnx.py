"""ONNX at a fixed size, in float16 and in int8, and what the command says about the k-NN accuracy lost."""

import re

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

from export.__main__ import export
from export.onnx_graph import _traced
from export.quantized import images_of
from model.nearest import predict
from support.exports import TINY_RESNET, TINY_VIT, difference, refused
from support.photos import write_folder
from training.trained_network import read_trained


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Noise of two classes, which differ a little in brightness, in train/ and test/."""
    noise, folder = np.random.default_rng(1), tmp_path_factory.mktemp("images")
    for split, count in (("train", 60), ("test", 40)):
        pixels = [noise.integers(0, 220, (32, 32, 3)) + 35 * (index % 2) for index in range(count)]
        write_folder(folder / split, [image.astype(np.uint8) for image in pixels])
    return folder


def run_of(path):
    session = onnxruntime.InferenceSession(path)
    return lambda images: torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0])


@pytest.mark.slow
def test_a_fixed_size_is_the_only_one_and_gives_our_features(trained, tmp_path):
    run, ours = trained(*TINY_RESNET)
    export(run, tmp_path / "fixed.onnx", "onnx", onnx_options={"size": 24})
    (given,) = onnxruntime.InferenceSession(tmp_path / "fixed.onnx").get_inputs()
    assert given.shape == ["batch", 3, 24, 24]
    theirs = run_of(tmp_path / "fixed.onnx")
    assert difference(ours.backbone, theirs, (1, 3, 24, 24), (5, 3, 24, 24)) < 1e-5
    with pytest.raises(Exception, match="Got invalid dimensions"):
        theirs(torch.zeros(1, 3, 32, 32))


@pytest.mark.slow(seconds=10)
@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param("test_vit", 224, id="of another size than its table of positions"),
        pytest.param("test_vit_relpos", 160, id="with biases in its attention"),
    ],
)
def test_a_vision_transformer_gives_our_features(trained, tmp_path, name, size):
    run, ours = trained(name, {}, size)
    export(run, tmp_path / "x.onnx", "onnx")
    assert difference(ours.backbone, run_of(tmp_path / "x.onnx"), (3, 3, size, size)) < 1e-5


class Windows(nn.Module):
    """Attention in two windows at once, over five axes, as in nest, twins and hiera; a mask keeps a token out."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).unflatten(2, (2, -1)).unflatten(1, (2, 4)).permute(0, 3, 1, 4, 2)
        mask = torch.arange(tokens.shape[-2]) > 0
        return functional.scaled_dot_product_attention(tokens, tokens, tokens, mask).mean((1, 3)).flatten(1)


@pytest.mark.slow(seconds=4)
def test_attention_over_more_than_four_axes_gives_our_features(tmp_path):
    torch.manual_seed(0)
    network = Windows().eval()
    program, free_size = _traced(network, 16, free_size=False)
    program.save(tmp_path / "x.onnx", external_data=False)
    assert not free_size and functional.scaled_dot_product_attention.__module__ != "export.onnx_graph"
    assert difference(network, run_of(tmp_path / "x.onnx"), (3, 3, 16, 16)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "precision", "nearest"), [(TINY_VIT, "fp16", 0.9999), (TINY_RESNET, "int8", 0.97)], ids=["fp16", "int8"]
)
def test_lower_precision_is_told_with_the_k_nn_of_both_files(trained, tmp_path, images, network, precision, nearest):
    run, ours = trained(*network)
    options = {"size": network[2], "precision": precision, "data": str(images)}
    *_, words = export(run, tmp_path / "small.onnx", "onnx", onnx_options=options)
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    assert {value.type for value in (*session.get_inputs(), *session.get_outputs())} == {"tensor(float)"}
    kinds = {each.data_type for each in onnx.load(tmp_path / "small.onnx").graph.initializer}
    assert {"fp16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}[precision] in kinds

    data = images_of(read_trained(run), str(images), network[2])
    told = re.search(
        r"k-NN (\S+)% in fp32, (\S+)% in \w+: (\S+) points lost \(40 test images among 60\); .* (\S+)$", words
    )
    before, after, lost = (float(told[number]) for number in (1, 2, 3))
    for of, score in ((ours.backbone, before), (run_of(tmp_path / "small.onnx"), after)):
        rows = [(data.labelled.train, data.labelled.train_rows), (data.labelled.test, data.labelled.test_rows)]
        train, test = (
            functional.normalize(torch.cat([of(batch.crops[0].float()) for batch in data.batches(*each)])).detach()
            for each in rows
        )
        classes = predict(train, torch.as_tensor(data.labelled.train_labels), test, data.k, data.temperature)
        assert 100 * np.mean(classes.numpy() == data.labelled.test_labels) == pytest.approx(score, abs=0.01)
    assert lost == pytest.approx(before - after, abs=0.011) and nearest <= float(told[4]) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "int4"], "--precision int4: give fp32, fp16, int8"),
        (["--precision", "int8"], "--precision int8 needs --data IMAGES"),
        (["--data", "images"], "--data is for --precision fp16 or int8"),
        (["--size", "-3"], "--size -3: give a number of pixels"),
        (["--precision", "fp16", "--data", "/nowhere"], "data.path=/nowhere"),
    ],
)
def test_a_mistake_is_one_line(trained, tmp_path, capsys, options, message):
    run, _ = trained(*TINY_RESNET)
    assert refused(capsys, run, tmp_path / "x.onnx", "--format", "onnx", *options).startswith(f"swave: {message}")
    assert not (tmp_path / "x.onnx").exists()


def test_options_of_onnx_are_refused_for_other_formats(trained, tmp_path, capsys):
    run, _ = trained(*TINY_RESNET)
    line = refused(capsys, run, tmp_path / "x.pth", "--format", "swav", "--size", "32")
    assert line == "swave: --size is for format onnx, not swav; leave it out\n"

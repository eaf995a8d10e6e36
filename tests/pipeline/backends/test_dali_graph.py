"""The graph of the DALI backend: it can be looked at without a GPU, and its GPU form of the colors runs on a CPU."""

import re
from dataclasses import replace

import numpy as np
import pytest
from nvidia.dali import fn, pipeline_def, types

from config.recipe import load_config
from pipeline.backends.dali import DaliBackend, colored
from pipeline.color import color_matrices
from pipeline.crops import Blur, Crops, View, crops_from_config
from pipeline.dataset.open import open_dataset
from pipeline.draw import draw
from support.photos import flat_colors, photographs, write_folder
from training.auto import fit
from training.build import build_loader
from training.distributed import Cluster

SWAV = Crops(views=(View(48, (0.14, 1.0)),) * 2 + (View(24, (0.05, 0.14)),) * 6)


def operators(backend):
    """The specification of each operator of a backend's graph, as text."""
    pipeline = backend._define(lambda _: None)
    pipeline._build_graph()
    return [str(operator.spec) for operator in pipeline._ops]


def names_in(part, specification):
    """The names under "Inputs:" or "Outputs:" of a specification."""
    return re.search(rf"{part}:\n((?:    \S+\n)*)", specification).group(1).split()


def returned(specifications):
    """What operators take from the CPU although a GPU has made it."""
    on_gpu = {
        name.removesuffix("_gpu") for text in specifications for name in names_in("Outputs", text) if "_gpu" in name
    }
    inputs = [name for text in specifications for name in names_in("Inputs", text)]
    return [name for name in inputs if name.endswith("_cpu") and name.removesuffix("_cpu") in on_gpu]


@pytest.mark.parametrize("crops", [SWAV, replace(SWAV, blur=Blur(0.0))], ids=["with blur", "without"])
def test_nothing_returns_from_the_gpu_within_a_batch(crops):
    """Each return would wait for the GPU: the means of eight crops took eight of them."""
    graph = operators(DaliBackend(crops, 2, 1, device_id=0))
    assert sum("OpSpec for CropMirrorNormalize" in text and "device: gpu" in text for text in graph) == 8
    assert returned(graph) == []


def test_a_return_from_the_gpu_would_be_seen():
    @pipeline_def(batch_size=1, num_threads=1, device_id=0)
    def returning():
        image = fn.decoders.image(fn.external_source(dtype=types.UINT8, ndim=1), device="mixed")
        return fn.reshape(fn.reductions.mean(image, axes=(0, 1)).cpu(), shape=[3])

    pipeline = returning()
    pipeline._build_graph()
    assert len(returned([str(operator.spec) for operator in pipeline._ops])) == 1


def test_the_gpus_form_of_the_colors_gives_the_cpus_levels():
    """Both forms on the CPU: a level of 255 differs at most where rounding decides."""
    images = [np.ascontiguousarray(photo[:64, :64]) for photo in photographs()]
    rows = np.arange(len(images))
    linear, of_mean = color_matrices(draw(replace(SWAV, views=SWAV.views[:1]), 1, 0, rows, rows + 64, rows + 64))

    @pipeline_def(batch_size=len(images), num_threads=1, device_id=None)
    def both():
        image, a, b = fn.external_source(
            source=lambda: (images, linear[:, 0].copy(), of_mean[:, 0].copy()),
            num_outputs=3, dtype=[types.UINT8, types.FLOAT, types.FLOAT], ndim=[3, 2, 2],
        )  # fmt: skip
        image = fn.reshape(image, layout="HWC")
        return colored(image, a, b, on_gpu=False), colored(image, a, b, on_gpu=True)

    pipeline = both()
    pipeline.build()
    one, other = (np.asarray(output.as_tensor()).astype(int) for output in pipeline.run())
    changed = np.abs(one - np.stack(images)).mean()
    assert changed > 10  # levels: the colors do change
    assert np.abs(one - other).max() <= 1
    assert (one != other).mean() < 1e-3


def test_the_settings_share_of_jpegs_reaches_the_decoder(tmp_path):
    table = open_dataset(write_folder(tmp_path / "images", flat_colors(8)), tmp_path / "tables", 1, progress=False)
    for load in (0.65, 0.4):
        given = [] if load == 0.65 else [f"pipeline.hw_decoder_load={load}"]
        few = ["run.batch_size=4", "model.prototypes=4", "pipeline.threads=1"]
        config = load_config(["config/demo.yaml", "pipeline.backend=dali", *few, *given])
        fit(config, 8, Cluster())  # auto is DALI's 0.65
        crops = crops_from_config(config.crops, "dali")
        loader = build_loader(config, table, crops, Cluster())
        (decoder,) = (text for text in operators(loader.backend) if "OpSpec for decoders__Image" in text)
        loader.close()
        assert float(re.search(r"hw_decoder_load: (\S+)", decoder).group(1)) == pytest.approx(load)

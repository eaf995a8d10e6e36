"""Parts of the loader benchmark without a run: sizes of made images, plan, sweep, storage, GPUs fed."""

import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from perf.images import photographs
from perf.loader.contenders import crops_of, line_up
from perf.loader.gpus_fed import gpu_rate, gpus_fed
from perf.loader.image_sizes import STRATA, imagenet_like, of_size, size_of
from perf.loader.plan import plan, rounds_within, turn_seconds
from perf.loader.storage import cached_share, cannot_drop, read_for
from perf.loader.sweep import FILES, Point, choose, cost_of, points_of

FFCV_RAW = {256: 170e9, 384: 371e9, 512: 616e9, 1600: 789e9}  # FFCV's bytes of ImageNet, longer side cut to the key


def test_made_sizes_have_imagenets_pixels_at_every_cut():
    sizes = np.array([size_of(index) for index in range(20_000)], float)
    longer, ratio = sizes.max(1), sizes.min(1) / sizes.max(1)
    for cut, size in FFCV_RAW.items():
        pixels = (np.minimum(longer, cut) ** 2 * ratio).mean()
        assert pixels == pytest.approx(size / 3 / 1_281_167, rel=0.04), cut
    assert longer.max() > 4000
    assert sum(stratum.share for stratum in STRATA) == pytest.approx(1.0)


def test_a_made_image_has_its_size_and_is_the_same_every_time():
    sources = photographs()
    for index in (0, 5, 9):
        encoded = imagenet_like(sources, index)
        assert encoded == imagenet_like(photographs(), index)
        assert Image.open(io.BytesIO(encoded)).size == size_of(index)
    large = Image.open(io.BytesIO(of_size(sources, 1, 1600, 1200)))
    assert large.size == (1600, 1200)
    assert np.asarray(large).std() > 10


def test_a_plan_without_budget_is_the_usual_one_and_given_values_stay():
    usual = plan(None, None, None, None, True, None, 64)
    assert (usual.images, usual.rounds, usual.seconds, usual.sweep) == (1200, 5, 1.5, False)
    short = plan(100, None, None, None, True, None, 64)
    assert (short.rounds, short.seconds, short.sweep, short.memory_of) == (3, None, True, "loaders")
    assert (
        plan(100, 80, 2, 0.4, False, False, 64).__dict__.items() >= {"images": 80, "rounds": 2, "seconds": 0.4}.items()
    )


def test_turns_fill_the_available_time_and_there_are_always_three_rounds():
    assert turn_seconds([1.0, 0.5], 3, 6.0) == pytest.approx(0.25)
    assert 3 * (1.5 + 2 * 0.25) == 6.0
    assert turn_seconds([1.0], 3, 1.0) == 0.1
    assert turn_seconds([0.0], 3, 1e6) == 1.5
    assert rounds_within([1.0, 1.0], 0.5, 5, 12.1) == 4
    assert rounds_within([1.0, 1.0], 0.5, 5, 1.0) == 3


def test_a_sweep_varies_one_thing_at_a_time_around_the_runs_own_point():
    points = points_of(("ffcv", "dali", "torchvision"), 4, 64, ["250 x 188"])
    assert points[:2] == [Point("ffcv", 4, 64, FILES), Point("dali", 4, 64, FILES)]
    ffcv_points = {(point.threads, point.batch, point.source) for point in points if point.backend == "ffcv"}
    threads = {(count, 64, FILES) for count in (1, 2, 4, 8)}
    assert ffcv_points == threads | {(4, 16, FILES), (4, 256, FILES), (4, 16, "250 x 188")}
    assert len(points) == 2 * len(ffcv_points)


def test_a_sweep_leaves_out_points_that_do_not_fit_and_says_why():
    points = points_of(("ffcv",), 2, 64, [])
    taken, left_out = choose(points, [1.0] * len(points), lambda point: point.batch < 256, 3.5)
    assert taken == points[:3]
    assert len(left_out) == len(points) - 3
    assert {"threads", "batch", "why"} < set(left_out[0])
    assert any("memory" in point["why"] for point in left_out)


def test_large_images_and_few_threads_cost_a_sweep_more():
    def cost(**changes):
        point = Point(**{"backend": "ffcv", "threads": 2, "batch": 16, "source": FILES} | changes)
        return cost_of(point, {"ffcv": 100.0}, 2, 0.19, 2, 0.01)

    assert cost(source="1600 x 1200") > cost(source="500 x 375") > cost(source="250 x 188")
    assert cost(threads=1) > cost(threads=2) == cost(threads=4)


def test_contenders_on_one_core_and_in_memory_take_part_if_possible():
    assert line_up(["torchvision"], False, 2) == [("torchvision", "full", 2)]
    assert line_up(["ffcv"], False, 2) == [("ffcv", "full", 2), ("ffcv", "full", 1)]
    assert ("libjpeg-turbo", "decode", 1) in line_up(["ffcv"], True, 2)
    assert ("libjpeg-turbo", "decode", 1) not in line_up(["dali"], True, 2)


def test_crops_come_from_the_recipe():
    assert [view.size for view in crops_of(None, []).views] == [224] * 2 + [96] * 6
    assert len(crops_of(None, ["crops.local.count=3"]).views) == 5
    assert {view.size for view in crops_of("config/fashion_mnist.yaml", []).views} == {20}


def test_all_bytes_are_read_and_dropped_pages_are_gone_or_the_reason_is_given(tmp_path):
    extents = []
    for index in range(4):
        file = tmp_path / f"{index}"
        file.write_bytes(bytes(10_000 * (index + 1)))
        extents.append((str(file), 100, 10_000 * (index + 1) - 100))
    with ThreadPoolExecutor(2) as pool:
        images, size, taken = read_for(pool, extents, 60.0, repeat=False)
    assert (images, size) == (4, 100_000 - 400)
    assert taken > 0
    assert cached_share(extents) == 1.0  # just read
    why = cannot_drop(extents)
    assert "page cache" in why if why else cached_share(extents) <= 0.02


def test_gpus_fed_is_rate_over_rate_and_empty_without_one(tmp_path):
    results = [
        {"backend": "ffcv", "mode": "full", "images_per_second": 500.0},
        {"backend": "ffcv-kernel", "mode": "full", "images_per_second": 900.0},
    ]
    assert gpus_fed(results, gpu_rate(250.0, None, tmp_path, True)) == {"ffcv": {"rate_needed": 250.0, "gpus": 2.0}}
    no_rate = gpu_rate(None, None, tmp_path, True)
    assert gpus_fed(results, no_rate) == {}
    assert "--gpu-rate" in no_rate["why"]
    (tmp_path / "gpu-X.json").write_text(
        json.dumps({"device": "X", "parts": {"step": [{"case": "default", "images_per_second": 1000.0}]}})
    )
    assert gpu_rate(None, None, tmp_path, True)["images_per_second"] == 1000.0
    assert "why" in gpu_rate(None, None, tmp_path, False)  # for other crops than the measured ones


def test_a_gpu_rate_is_a_ranks_share_and_never_comes_from_a_cpu(tmp_path):
    step = tmp_path / "step.json"
    step.write_text(json.dumps({"images_per_second": 4000.0, "ranks": 4, "device": "NVIDIA H100"}))
    assert gpu_rate(None, step, tmp_path, True)["images_per_second"] == 1000.0
    step.write_text(json.dumps({"images_per_second": 4.0, "ranks": 2, "device": "cpu"}))
    assert "CPU" in gpu_rate(None, step, tmp_path, True)["why"]
    step.write_text("{}")
    with pytest.raises(ValueError, match="--step-json="):
        gpu_rate(None, step, tmp_path, True)

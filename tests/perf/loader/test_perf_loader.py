"""The loader benchmark: a tiny real run with consistent figures, and mistakes, which end with one line."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from PIL import Image

from perf.images import BYTES, choose, jpeg_of, photographs
from perf.loader.figures import RATIOS
from perf.loader.peers import PublishedRecipe, random_pipeline
from pipeline.crops import Blur, Changes, Crops, Jitter, Posterize, Solarize, View
from pipeline.dataset.open import open_dataset
from support.forks import run_forked
from support.programs import run_module

ROOT = Path(__file__).resolve().parents[3]
CROPS = Crops((View(64, (0.14, 1.0)),) * 2 + (View(32, (0.05, 0.14)),) * 6)
SLOW = pytest.mark.slow  # because of the run that these tests share


def benchmark(folder: Path, *flags: str, program: str = "perf.loader") -> subprocess.CompletedProcess:
    """The program in `folder`."""
    return run_forked(program, *flags, folder=folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """24 of the benchmark's own JPEGs."""
    folder, sources = tmp_path_factory.mktemp("images"), photographs()
    for index in range(24):
        (folder / f"{index:02d}.jpg").write_bytes(jpeg_of(sources, index))
    return folder


@pytest.fixture(scope="module")
def report(images, tmp_path_factory):
    """The report of two rounds of ffcv, in both of its modes, and torchvision, with crops of a recipe and settings."""
    folder = tmp_path_factory.mktemp("run")
    flags = "--backends ffcv,ffcv-affine,torchvision --batch 8 --rounds 2 --seconds 0.05".split()
    flags += ["--config", str(ROOT / "config" / "fashion_mnist.yaml"), "crops.local.count=2", "crops.global.size=160"]
    flags += "--sweep --gpu-rate 100 --json figures.json".split()
    done = benchmark(folder, "--data", str(images), "--images", "24", *flags)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "figures.json").read_text()) | {"printed": done.stdout}


def rounds(report, backend, mode):
    (result,) = (r for r in report["results"] if (r["backend"], r["mode"]) == (backend, mode))
    return result["rounds"]


@SLOW
def test_every_contender_has_its_median_lowest_and_highest_rate(report):
    assert [(r["backend"], r["mode"]) for r in report["results"]] == [
        ("torchvision", "full"),
        ("ffcv-affine", "full"),
        ("ffcv", "full"),
        ("ffcv", "crops"),
        ("ffcv-kernel", "full"),
    ]
    for result in report["results"]:
        rates = result["rounds"]
        assert len(rates) == 2
        assert 0 < min(rates) == result["min"] <= result["images_per_second"] <= result["max"] == max(rates)
        assert result["images_per_second"] == pytest.approx(median(rates), abs=0.11)


@SLOW
def test_ratios_follow_from_the_rates_of_the_same_round(report):
    full, crops = rounds(report, "ffcv", "full"), rounds(report, "ffcv", "crops")
    peer, decode = rounds(report, "torchvision", "full"), report["decode_rounds"]
    affine = rounds(report, "ffcv-affine", "full")
    expected = {
        "full_over_torchvision": median(a / b for a, b in zip(full, peer, strict=True)),
        "affine_over_full": median(a / b for a, b in zip(affine, full, strict=True)),
        "time_over_decode": median(a / b for a, b in zip(decode, full, strict=True)),
        "crops_over_decode": median(a / b for a, b in zip(crops, decode, strict=True)),
    }
    assert report["ratios"] == pytest.approx(expected, rel=0.01)
    assert report["decode_images_per_second"] == pytest.approx(median(decode), abs=0.11)
    assert set(expected) < set(RATIOS)


@SLOW
def test_stages_add_up_to_the_kernel_and_the_kernel_with_hand_over_to_the_loader(report):
    stages = report["stages_ms"]
    parts = sum(stages[name] for name in ("decode", "resample", "color", "blur", "store"))
    assert stages["decode"] > 0
    assert stages["kernel"] == pytest.approx(parts, rel=0.5)  # a median of sums is not the sum of medians
    assert stages["loader"] == pytest.approx(stages["kernel"] + stages["hand_over"], abs=0.001)


@SLOW
def test_memory_is_reported_for_each_epoch_and_its_peak_is_the_highest(report):
    memory = report["memory"]
    assert len(memory["epochs_mb"]) == 10
    assert memory["peak_mb"] >= max(memory["epochs_mb"])
    assert memory["above_imports_mb"] == pytest.approx(memory["peak_mb"] - memory["imports_mb"], abs=0.11)
    room = 24 * 3 * (2 * 160**2 + 2 * 12**2) / 1e6  # of a batch of crops, without which nothing was made
    assert memory["above_imports_mb"] > room


@SLOW
def test_every_contender_has_its_cpu_time_and_memory(report):
    for result in report["results"]:
        assert result["cpu_ms_per_image"] > 0
        assert result["memory_mb"] > 0


@SLOW
def test_ceilings_are_the_decode_and_reading(report):
    ceilings = report["ceilings"]
    assert ceilings["decode"] == report["decode_images_per_second"]
    for name in ("read_warm", "read_cold"):
        figures = ceilings[name]
        if figures["images_per_second"] is None:
            assert figures["why"]
        else:
            kilobytes = 1000 * figures["mb_per_second"] / figures["images_per_second"]
            assert kilobytes == pytest.approx(report["images"]["mean_bytes"] / 1000, rel=0.1)


@SLOW
def test_the_sweep_has_points_in_threads_and_batch_and_says_what_it_left_out(report):
    points = {(point["backend"], point["threads"], point["batch"], point["source"]) for point in report["sweep"]}
    cores = report["machine"]["cores"]
    assert {("ffcv", cores, 8, "files"), ("ffcv", cores, 16, "files"), ("ffcv", cores, 16, "250 x 188")} <= points
    for point in report["sweep"]:
        assert 0 < point["min"] <= point["images_per_second"] <= point["max"]
    assert all(point["batch"] > 24 and point["why"] for point in report["sweep_left_out"])


@SLOW
def test_gpus_fed_are_reported_for_the_given_rate(report):
    (full,) = (r for r in report["results"] if (r["backend"], r["mode"]) == ("ffcv", "full"))
    assert report["gpus_fed"]["ffcv"]["gpus"] == pytest.approx(full["images_per_second"] / 100, abs=0.01)


@SLOW
def test_the_report_says_what_it_was_measured_on(report):
    assert report["images"]["count"] == report["images"]["jpegs_in_memory"] == 24
    assert 60_000 < report["images"]["mean_bytes"] < BYTES
    assert report["settings"]["crops"] == [[2, 160], [2, 12]]
    assert report["settings"]["threads"] == report["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert {"torch", "torchvision", "pillow", "ffcv"} < set(report["machine"]["versions"])
    if report["machine"]["cores"] > 1:
        assert report["scaling"]["cores"] == [1, report["machine"]["cores"]]
        assert report["scaling"]["full_over_decode"] > 0
    assert 0 <= report["machine"]["taken_by_others"] <= 1
    for word in ("torchvision", "at least 6", "images/s"):
        assert word in report["printed"]


@pytest.mark.slow
def test_torchvision_and_dali_augment_as_much_as_each_other(images):
    files = sorted(map(str, images.iterdir()))
    dataset, pipeline = PublishedRecipe(files, CROPS), random_pipeline(files, CROPS, 24, 1)
    samples = [[view.permute(1, 2, 0).numpy() for view in dataset[index]] for index in range(24)]
    published = [np.stack(view) for view in zip(*samples, strict=True)]
    dali = [view.as_array() for view in pipeline.run()]
    described = []
    for views in (published, dali):
        assert [view.shape for view in views] == [(24, view.size, view.size, 3) for view in CROPS.views]
        pixels = [np.clip(view * CROPS.std + CROPS.mean, 0, 1) for view in views]
        gray = np.mean([np.ptp(view, axis=-1).max(axis=(1, 2)) < 0.01 for view in pixels])
        assert 0.08 < gray < 0.34  # of 192 crops: four standard deviations about 0.2
        described.append([np.mean([view.mean() for view in pixels]), np.mean([view.std() for view in pixels])])
    assert described[0] == pytest.approx(described[1], rel=0.2)


def test_the_peers_change_the_crops_of_each_group_as_it_says(tmp_path):
    """An image that is dark above and bright below says how often a crop was flipped, turned, inverted or dimmed."""
    still = Changes(0.0, jitter=Jitter(0.0), grayscale=0.0, blur=Blur(0.0))
    changes = [
        still,
        replace(still, vertical_flip=1.0),
        replace(still, quarter_turn=1.0),
        replace(still, solarize=Solarize(1.0, 0.5)),
        replace(still, posterize=Posterize(1.0, 1)),
        replace(still, jitter=Jitter(1.0, 0.0, 0.0, 0.0, 0.0, gain=0.5)),
    ]
    views = tuple(View(16, (0.999, 1.0), own) for own in changes)
    crops = Crops(views, ratio=(1.0, 1.0), mean=(0.0,) * 3, std=(1.0,) * 3)
    half = np.zeros((64, 64, 3), np.uint8) + np.where(np.arange(64) < 32, 40, 200)[:, None, None].astype(np.uint8)
    files = [str(tmp_path / f"{number}.png") for number in range(24)]
    for file in files:
        Image.fromarray(half).save(file)
    samples = [[view.permute(1, 2, 0).numpy() for view in PublishedRecipe(files, crops)[row]] for row in range(24)]
    published = [np.stack(view) for view in zip(*samples, strict=True)]
    dali = [view.as_array() for view in random_pipeline(files, crops, 24, 1).run()]
    for made in (published, dali):
        plain, flipped, turned, inverted, few = (np.rint(255 * view[..., 0]) for view in made[:5])
        corners = [(1, 8, 40), (14, 8, 200)]  # row, column, value
        assert all(abs(plain[:, row, column] - value).max() <= 2 for row, column, value in corners)
        assert all(abs(flipped[:, 15 - row, column] - value).max() <= 2 for row, column, value in corners)
        sides = [turned[:, 14, 8] < 60, turned[:, 8, 1] < 60, turned[:, 8, 14] < 60]  # where it is dark
        assert all(0 < side.sum() < 24 for side in sides) and (sum(side.astype(int) for side in sides) == 1).all()
        assert abs(inverted[:, 1, 8] - 40).max() <= 2 and abs(inverted[:, 14, 8] - 55).max() <= 2
        assert (few[:, 1, 8] == 0).all() and (few[:, 14, 8] == 128).all()
        dark = np.rint(255 * made[5][:, 1, 8])  # 40 times a gain of 0.5 to 1.5, of each image and channel
        assert dark.min() >= 19 and dark.max() <= 61
        assert np.ptp(dark, axis=0).min() > 20 and np.ptp(dark, axis=1).mean() > 10


@pytest.mark.parametrize("jitter", [Jitter(1.0, 0.6, 0.6, 0.0, 0.0), Jitter(1.0, 0.0, 0.0, 0.0, 0.1), Jitter(0.0)])
def test_dalis_own_operators_take_strengths_of_zero(images, jitter):
    files = sorted(map(str, images.iterdir()))
    plain = replace(CROPS, jitter=jitter, grayscale=0.0, blur=Blur(0.5, (1.0, 1.0)))
    views = random_pipeline(files, plain, 4, 1).run()
    assert [view.as_array().shape for view in views] == [(4, view.size, view.size, 3) for view in plain.views]


def test_the_made_images_are_the_same_every_time():
    sources = photographs()
    assert jpeg_of(sources, 3) == jpeg_of(photographs(), 3)
    assert jpeg_of(sources, 3) != jpeg_of(sources, 11)  # another part of the same photograph


def test_chosen_images_are_spread_over_the_whole_set(images, tmp_path):
    table = choose(open_dataset(images, tmp_path, workers=1, progress=False), 4)
    assert [table.name(row) for row in range(4)] == ["00.jpg", "08.jpg", "15.jpg", "23.jpg"]
    assert np.array_equal(table.usable(), np.arange(4))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "/no/such/folder"], "swave: --data=/no/such/folder: no such file or folder"),
        (["--backends", "ffcv,pillow"], "swave: --backends=ffcv,pillow: unknown backend 'pillow'; take some of ffcv,"),
        (["--images", "10"], "swave: --images=10 is less than --batch=64"),
        (["--threads", "9999"], "swave: --threads=9999: expected 1 to"),
        (["--budget", "1"], "swave: --budget=1: expected 20 seconds to a day"),
        (["--gpu-rate", "0"], "swave: --gpu-rate=0: expected images a second"),
        (["crops.local.count=x"], "swave: crops.local.count"),
        (["crops"], "swave: crops: expected key=value"),
        (["--config", "no.yaml"], "swave: no.yaml: no such recipe"),
        (["--rounds", "0"], "swave: --rounds=0: expected at least 1"),
        (["--json", "nowhere/out.json"], "swave: --json=nowhere/out.json: there is no folder"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(tmp_path, flags, message):
    done = run_module("perf.loader", *flags, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


@SLOW
def test_sigint_ends_the_benchmark_with_one_line_and_leaves_no_files(images, tmp_path):
    flags = "--backends ffcv,torchvision --images 24 --batch 8 --rounds 9999".split()
    command = [sys.executable, "-m", "perf.loader", "--data", str(images), *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not list(tmp_path.glob("data/bench/tmp*")) and process.poll() is None:
        time.sleep(0.01)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "swave: stopped; nothing is written"
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("data/bench/tmp*"))


@pytest.mark.parametrize(
    ("module", "work", "arguments"),
    [("perf.loader.__main__", "run", []), ("pipeline.convert", "convert", ["a", "b", "--format=index"])],
)
def test_sigint_during_exec_of_a_text_gives_the_same_exit_code(tmp_path, module, work, arguments):
    interrupt = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print()"  # as imports of numba do
    (tmp_path / "stopped.py").write_text(
        f"import sys\nimport {module} as program\nprogram.{work} = lambda *_, **__: exec({interrupt!r})\n"
        f"sys.exit(program.main({arguments}))"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run([sys.executable, "-m", "stopped"], cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 130, done.stderr


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_inside_a_finalizer_ends_a_benchmark_all_the_same(name, code):
    """Python drops the exception there and says so on standard error."""
    text = f"""
import os, signal, sys, time, weakref
from perf.program import program

class Thing: pass

def measure(_stopped):
    thing = Thing()
    reference = weakref.ref(thing, lambda _: [os.kill(os.getpid(), signal.{name}), time.sleep(0.1)])
    del thing
    time.sleep(100)

sys.exit(program(measure, print, None))
"""
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, timeout=90)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--images", "0"], "swave: --images=0: expected at least 1"),
        (["--json", "nowhere/out.json"], "swave: --json=nowhere/out.json: there is no folder"),
    ],
)
def test_a_mistake_in_asking_for_parity_is_one_line_and_code_2(tmp_path, flags, message):
    done = run_module("perf.parity", *flags, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


@SLOW
def test_parity_is_reported_for_every_operation_and_within_its_limits(tmp_path):
    process = benchmark(tmp_path, "--images", "8", "--json", "out.json", program="perf.parity")
    assert process.returncode == 0, process.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["images"] == 8
    assert {"resize, flip", "blur", "hue", "everything"} < set(report["levels"])
    for name, levels in report["levels"].items():
        assert name in process.stdout
        assert 0 < levels["ffcv"] < levels["limit"]
        assert levels["ffcv"] <= levels["ffcv-affine"]


@SLOW
def test_too_few_images_for_a_batch_are_one_line_and_code_2(images, tmp_path):
    done = benchmark(tmp_path, "--data", str(images), "--batch", "25", "--images", "25")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("swave: --batch=25: there are only 24 images in")

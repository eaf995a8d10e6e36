"""Conversion on Ray gives the bytes of a local run, even if nodes die."""

import contextlib
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.conversions import command, converted, digests, target
from support.photos import flat_colors, write_folder
from support.small_datasets import ROOT, error_of

NEEDS_RAY = "Ray is not installed: pip install ray"


@pytest.fixture
def source(tmp_path):
    return write_folder(tmp_path / "source", flat_colors(240, 200), classes=3)


@pytest.mark.slow
def test_a_node_killed_half_way_changes_no_byte(source, tmp_path):
    pytest.importorskip("ray", reason=NEEDS_RAY)
    from ray.cluster_utils import Cluster

    converted(source, target(tmp_path / "local", "wds"), "wds", shard_images=6)
    out = target(tmp_path / "cluster", "wds")
    parts = out.with_name(".x.partial") / "parts"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(converted, source, out, "wds", shard_images=6, ray=cluster.address)
            while len(list(parts.glob("*.npz"))) < 5 and not running.done():
                time.sleep(0.005)
            done = len(list(parts.glob("*.npz")))
            cluster.remove_node(second, allow_graceful=False)
            report = running.result(timeout=300)
    finally:
        cluster.shutdown()
    assert 5 <= done < 40
    assert report.written == 240
    assert digests(tmp_path / "cluster") == digests(tmp_path / "local")


@pytest.mark.slow
def test_a_signal_ends_a_conversion_on_ray_too(source, tmp_path):
    pytest.importorskip("ray", reason=NEEDS_RAY)
    out = target(tmp_path / "ray", "wds")
    options = ("--format", "wds", "--shard-images", 1, "--ray", "local", "--workers", 1)
    process = subprocess.Popen(command(source, out, *options), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while len(list(out.parent.glob(".x.partial/parts/*.npz"))) < 3 and process.poll() is None:
        time.sleep(0.005)
    process.terminate()
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert errors.strip().splitlines()[-1] == "stopped; the same command continues from here"


@pytest.fixture
def ray_folder(monkeypatch):
    """RAY_TMPDIR with a name short enough for Ray's sockets, and no RAY_ADDRESS."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with tempfile.TemporaryDirectory(prefix="r") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        (Path(folder) / "ray").mkdir()
        yield Path(folder) / "ray"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A directory other than the checkout, as the current one; no PYTHONPATH leads back."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def finish(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_auto_starts_ray_here_from_any_directory_though_a_dead_cluster_left_its_address(source, elsewhere, ray_folder):
    """Workers import the program from the checkout, though neither their directory nor PYTHONPATH is there."""
    services = pytest.importorskip("ray._private.services", reason=NEEDS_RAY)
    if services.find_gcs_addresses():
        pytest.skip("another Ray cluster runs on this machine")
    (ray_folder / "ray_current_cluster").write_text("127.0.0.1:1")
    converted(source, target(elsewhere / "local", "beton"), "beton", shard_images=50)
    out = target(elsewhere / "make", "beton")
    settings = ["RAY=auto", f"SRC={source}", f"OUT={out}", "FORMAT=beton", "WORKERS=1", "ARGS=--shard-images 50"]
    done = finish(["make", "-C", str(ROOT), "--old-file=setup", f"VENV={sys.executable}", "convert", *settings])
    assert "240" in done.stdout and "joining the Ray cluster" not in done.stderr
    assert digests(elsewhere / "make") == digests(elsewhere / "local")


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of one core; its processes run in a directory that is neither the checkout nor a test's."""
    pytest.importorskip("ray", reason=NEEDS_RAY)
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="r") as folder, contextlib.chdir(folder):
        started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield started
    started.shutdown()


def new_job(address):
    """The number of a job that begins now on the cluster."""
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="error")
    job = ray.get_runtime_context().get_job_id()
    ray.shutdown()
    return int(job[:2], 16)


@pytest.mark.slow
def test_auto_joins_a_running_cluster_and_relative_paths_mean_the_directory_of_the_program(
    source, elsewhere, cluster, ray_folder, monkeypatch
):
    converted(source, target(elsewhere / "local", "wds"), "wds", shard_images=50)
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pipeline.convert import main; sys.exit(main())"
    before = new_job(cluster.address)
    for how in ("RAY_ADDRESS", "ray start"):
        with monkeypatch.context() as patch:
            if how == "RAY_ADDRESS":
                patch.setenv("RAY_ADDRESS", cluster.address)
            else:
                (ray_folder / "ray_current_cluster").write_text(cluster.address)  # as `ray start` writes it
            target(elsewhere / how, "wds")
            arguments = ["source", f"{how}/x", "--format", "wds", "--shard-images", "50", "--ray", "auto"]
            done = finish([sys.executable, "-c", start, *arguments])
        assert f"joining the Ray cluster at {cluster.address}" in done.stderr, how
        assert digests(elsewhere / how) == digests(elsewhere / "local"), how
    assert new_job(cluster.address) == before + 3  # the conversions were the jobs between the two


def test_a_cluster_that_does_not_answer_is_one_line(source, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason=NEEDS_RAY)
    for address, why in (("127.0.0.1:1", "Connection refused"), ("nowhere", "not of the form host:port")):
        line = error_of(converted, source, tmp_path / "x", "wds", ray=address)
        assert line.startswith(f"--ray={address}: no Ray cluster answers ({why})")
        monkeypatch.setenv("RAY_ADDRESS", address)
        line = error_of(converted, source, tmp_path / "x", "wds", ray="auto")
        assert line.startswith(f"RAY_ADDRESS={address}: no Ray cluster answers ({why})")


def test_without_ray_one_line_says_how_to_get_it(source, tmp_path):
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from pipeline.convert import main\n"
        f"sys.exit(main([{str(source)!r}, {str(tmp_path / 'x')!r}, '--format', 'wds', '--ray', 'auto']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].endswith("install it (pip install ray) or leave --ray out")

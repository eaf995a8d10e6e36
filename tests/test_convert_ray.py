"""Conversion on Ray: nodes may die, the bytes are those of a local run."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conversions import command, converted, digests, run, target
from photos import flat_colours, write_folder
from small_datasets import ROOT, error_of

NEEDS_RAY = "Ray is not installed: pip install ray"


@pytest.fixture
def source(tmp_path):
    return write_folder(tmp_path / "source", flat_colours(240, 200), classes=3)


@pytest.mark.slow
def test_a_node_killed_half_way_changes_no_byte(source, tmp_path):
    pytest.importorskip("ray", reason=NEEDS_RAY)
    from ray.cluster_utils import Cluster

    converted(source, target(tmp_path / "local", "wds"), "wds", shard_images=2)
    out = target(tmp_path / "cluster", "wds")
    parts = out.with_name(".x.partial") / "parts"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(converted, source, out, "wds", shard_images=2, ray=cluster.address)
            while len(list(parts.glob("*.npz"))) < 20 and not running.done():
                time.sleep(0.005)
            done = len(list(parts.glob("*.npz")))
            cluster.remove_node(second, allow_graceful=False)
            report = running.result(timeout=50)
    finally:
        cluster.shutdown()
    assert 20 <= done < 120
    assert report.written == 240
    assert digests(tmp_path / "cluster") == digests(tmp_path / "local")


@pytest.mark.slow
def test_a_signal_ends_a_conversion_on_ray_too(source, tmp_path):
    pytest.importorskip("ray", reason=NEEDS_RAY)
    out = target(tmp_path / "ray", "wds")
    options = ("--format", "wds", "--shard-images", 1, "--ray", "auto", "--workers", 1)
    process = subprocess.Popen(command(source, out, *options), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while len(list(out.parent.glob(".x.partial/parts/*.npz"))) < 3 and process.poll() is None:
        time.sleep(0.005)
    process.terminate()
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert errors.strip().splitlines()[-1] == "stopped; the same command goes on from here"


@pytest.mark.slow
def test_the_command_starts_ray_on_this_machine(source, tmp_path):
    pytest.importorskip("ray", reason=NEEDS_RAY)
    converted(source, target(tmp_path / "local", "beton"), "beton", shard_images=50)
    out = target(tmp_path / "ray", "beton")
    code, told, errors = run(source, out, "--format", "beton", "--shard-images", 50, "--ray", "auto", "--workers", 2)
    assert code == 0 and "240" in told, errors
    assert digests(tmp_path / "ray") == digests(tmp_path / "local")


def test_a_cluster_that_does_not_answer_is_one_line(source, tmp_path):
    pytest.importorskip("ray", reason=NEEDS_RAY)
    for address, why in (("127.0.0.1:1", "Connection refused"), ("nowhere", "not of the form host:port")):
        line = error_of(converted, source, tmp_path / "x", "wds", ray=address)
        assert line.startswith(f"--ray={address}: no Ray cluster answers ({why})")


def test_without_ray_one_line_says_how_to_get_it(source, tmp_path):
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from pipeline.convert import main\n"
        f"sys.exit(main([{str(source)!r}, {str(tmp_path / 'x')!r}, '--format', 'wds', '--ray', 'auto']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].endswith("install it (pip install ray) or leave --ray out")

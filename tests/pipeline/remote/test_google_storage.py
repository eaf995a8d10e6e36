"""Images in a bucket of a Google storage emulator on this machine (gcp-storage-emulator, through gcsfs)."""

import socket

import pytest

from pipeline.loader import Loader
from support.remote.sites import CROPS, size_of, table_of, write_site
from support.small_datasets import error_of


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it asks Google what kind of bucket this is
    gcsfs = pytest.importorskip("gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="swave-test")
    server.start()
    patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    files = gcsfs.GCSFileSystem(token="anon", skip_instance_cache=True)
    root = write_site(tmp_path_factory.mktemp("site"), count=60, a_shard=20)
    for file in root.glob("*.tar"):
        files.pipe_file(f"swave-test/shards/{file.name}", file.read_bytes())
    yield root
    patch.undo()
    server.stop()


@pytest.mark.slow
def test_training_on_a_bucket_draws_the_same_as_from_a_disk(site, tmp_path):
    local = table_of(site / "*.tar", tmp_path / "local")
    whole = table_of("gs://swave-test/shards", tmp_path / "whole")
    table = table_of("gs://swave-test/shards", tmp_path / "cache", f"{size_of(site) // 10}B")
    assert whole.digest() == table.digest() == local.digest()
    sums = []
    for each in (table, local):
        loader = Loader(each, CROPS, backend="torchvision", seed=1, global_batch=10)
        sums.append([[float(crops.sum()) for crops in batch.crops] for batch in loader])
        loader.close()
    assert sums[0] == sums[1]


def test_an_object_that_does_not_exist_is_one_line(site, tmp_path):
    line = error_of(table_of, "gs://swave-test/nothing", tmp_path / "cache")
    assert line.startswith("data.path=gs://swave-test/nothing: ") and "no such object" in line

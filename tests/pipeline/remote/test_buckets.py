"""Images in a bucket of an S3 server on this machine (moto): listed, mirrored, and read while training."""

import pytest
import s3fs
from moto.server import ThreadedMotoServer

from pipeline.dataset.table import DatasetError
from pipeline.loader import Loader
from support.photos import flat_colors, write_folder
from support.remote.sites import CROPS, size_of, table_of, write_site
from support.small_datasets import error_of


@pytest.fixture(scope="module")
def s3(request):
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    patch.setenv("AWS_ACCESS_KEY_ID", "key")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "SECRET")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    files = s3fs.S3FileSystem(skip_instance_cache=True)
    files.mkdir("swave-test")
    yield files
    patch.undo()
    server.stop()


@pytest.fixture(scope="module")
def site(s3, tmp_path_factory):
    root = write_site(tmp_path_factory.mktemp("site"), count=60, a_shard=20)
    for file in root.glob("*.tar"):
        s3.put_file(str(file), f"swave-test/shards/{file.name}")
    return root


@pytest.mark.parametrize("pattern", ["shards", "shards/", "shards/shard-*.tar"])
def test_a_folder_or_pattern_of_a_bucket_gives_the_same_table_as_a_disk(site, tmp_path, pattern):
    local = table_of(site / "*.tar", tmp_path / "local")
    table = table_of(f"s3://swave-test/{pattern}", tmp_path / "cache")
    assert table.digest() == local.digest() and table.name(25) == local.name(25)


def test_folders_of_a_bucket_are_splits_and_classes(s3, tmp_path):
    for split in ("train", "test"):
        write_folder(tmp_path / "images" / split, flat_colors(4 if split == "train" else 2))
    s3.put(str(tmp_path / "images") + "/", "swave-test/folders/", recursive=True)
    from pipeline.dataset.open import open_splits
    from support.remote.sites import section

    train, test = open_splits(section("s3://swave-test/folders", tmp_path / "cache"), progress=False)
    assert (len(train), len(test), train.classes) == (4, 2, ("class0", "class1"))


@pytest.mark.slow(seconds=3)
def test_training_on_a_bucket_larger_than_the_cache_draws_the_same_as_from_a_disk(site, tmp_path):
    tables = (
        table_of("s3://swave-test/shards", tmp_path / "cache", f"{size_of(site) // 10}B"),
        table_of(site / "*.tar", tmp_path / "local"),
    )
    sums = []
    for table in tables:
        loader = Loader(table, CROPS, backend="torchvision", seed=1, global_batch=10)
        sums.append([[float(crops.sum()) for crops in batch.crops] for _ in range(2) for batch in loader])
        if loader.feed.reader.remote:
            traffic = loader.feed.reader.remote.traffic
            assert traffic.fetched <= 1.05 * traffic.needed
        loader.close()
    assert sums[0] == sums[1]


def test_an_object_that_changes_while_training_ends_in_one_line_that_names_it(s3, site, tmp_path):
    for file in site.glob("*.tar"):
        s3.put_file(str(file), f"swave-test/changing/{file.name}")
    table = table_of("s3://swave-test/changing", tmp_path / "cache", "20KB")
    for file in site.glob("*.tar"):
        s3.pipe_file(f"swave-test/changing/{file.name}", bytes(file.stat().st_size))
    loader = Loader(table, CROPS, backend="torchvision", seed=1, global_batch=10)
    with pytest.raises(DatasetError, match=r"s3://swave-test/changing/shard-\d+\.tar: the object changed"):
        next(iter(loader))
    loader.close()


def test_a_bucket_that_does_not_exist_is_one_line(s3, tmp_path):
    line = error_of(table_of, "s3://swave-nothing/shards", tmp_path / "cache")
    assert line.startswith("data.path=s3://swave-nothing/shards: ") and "no such object" in line
    assert "SECRET" not in line

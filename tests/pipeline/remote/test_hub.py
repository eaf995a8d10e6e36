"""Images in a dataset of a hub of Hugging Face on this machine (huggingface_hub against support.remote.hub)."""

import os
import subprocess

import pytest

from config.recipe import ROOT
from pipeline.dataset.open import open_splits
from pipeline.loader import Loader
from pipeline.remote.faults import Patience
from pipeline.remote.store import open_store, read_range
from support.conversions import command, converted, digests
from support.photos import flat_colors, write_folder
from support.remote.hub import DATASET, serving_hub
from support.remote.sites import CROPS, section, size_of, table_of, write_site
from support.small_datasets import error_of

constants = pytest.importorskip("huggingface_hub.constants")
TOKEN = "hf_SECRET"
SHARDS = f"hf://datasets/{DATASET}"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    root = write_site(tmp_path_factory.mktemp("site"), count=60, a_shard=20)
    for file in root.glob("*"):
        if file.suffix != ".tar":
            file.unlink()
    (root / "README.md").write_text("Noise.")
    return root


@pytest.fixture
def hub(site, monkeypatch):
    with serving_hub(site, TOKEN) as hub:
        _use(hub, monkeypatch)
        yield hub


def _use(hub, monkeypatch, token=TOKEN):
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)  # HF_ENDPOINT is read when the library is imported
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + template)
    monkeypatch.setenv("HF_TOKEN", token)


@pytest.mark.parametrize("path", ["", "/shard-*.tar", "@main"])
def test_shards_of_a_dataset_give_the_same_table_as_from_a_disk(hub, site, tmp_path, path):
    local = table_of(site / "*.tar", tmp_path / "local")
    table = table_of(SHARDS + path, tmp_path / "cache")
    assert table.digest() == local.digest() and table.name(25) == local.name(25)
    assert not hub.leaked  # the token went to the hub only, not to where large files are stored


def test_a_single_shard(hub, site, tmp_path):
    local = table_of(site / "shard-000001.tar", tmp_path / "local")
    assert table_of(f"{SHARDS}/shard-000001.tar", tmp_path / "cache").digest() == local.digest()


@pytest.mark.parametrize("cache_bytes", ["1GB", "1KB"])
def test_folders_of_a_dataset_are_splits_and_classes(tmp_path, monkeypatch, cache_bytes):
    for split in ("train", "test"):
        write_folder(tmp_path / "images" / split, flat_colors(4 if split == "train" else 2))
    with serving_hub(tmp_path / "images") as hub:
        _use(hub, monkeypatch)
        train, test = open_splits(section(SHARDS, tmp_path / "cache", cache_bytes), progress=False)
        local = open_splits(section(tmp_path / "images", tmp_path / "local"), progress=False)
    assert (len(train), len(test), train.classes) == (4, 2, ("class0", "class1"))
    assert [train.digest(), test.digest()] == [table.digest() for table in local]


def test_training_reads_what_it_needs_and_asks_the_hub_once_for_a_file(hub, site, tmp_path):
    tables = (
        table_of(SHARDS, tmp_path / "cache", f"{size_of(site) // 10}B"),
        table_of(site / "*.tar", tmp_path / "local"),
    )
    hub.requests.clear()
    hub.sent = 0
    hub.faults += ["503", "cut", "429"]
    sums = []
    for table in tables:
        loader = Loader(table, CROPS, backend="torchvision", seed=1, global_batch=10)
        sums.append([[float(crops.sum()) for crops in batch.crops] for _ in range(2) for batch in loader])
        if loader.feed.reader.remote:
            assert hub.sent < 1.2 * loader.feed.reader.remote.traffic.needed  # an answer was cut
        loader.close()
    assert sums[0] == sums[1] and not hub.faults and not hub.leaked
    others = [request for request in hub.requests if " /stored/" not in request]
    assert len(others) < 0.5 * len(hub.requests)


def test_a_start_reads_one_commit_and_the_next_start_the_new_one(hub, site, tmp_path):
    store = open_store(SHARDS, Patience(first=0.01, budget=1))
    first = store.list()
    commit = hub.revision()
    assert all(f"@{commit}/" in item.address for item in first)
    (site / "README.md").write_text("More noise.")
    second = store.list()
    changed = [one.name for one, two in zip(first, second, strict=True) if one[2:] != two[2:]]
    assert changed == ["README.md"] and f"@{commit}/" not in second[0].address


@pytest.mark.slow(seconds=10)
def test_conversion_of_parquet_from_a_dataset_says_no_token(tmp_path):
    source = ROOT / "tests" / "pipeline" / "written" / "datasets"
    local, far = tmp_path / "local" / "x", tmp_path / "far" / "x"
    for out in (local, far):
        out.parent.mkdir()
    converted(source / "views.parquet", local, "wds")
    with serving_hub(source, TOKEN) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN}
        words = command(f"{SHARDS}/views.parquet", far, "--format", "wds", "--workers", "1")
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert digests(far) == digests(local) and not hub.leaked
    assert "SECRET" not in done.stdout + done.stderr
    texts = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert texts and not any(b"SECRET" in text for text in texts)


@pytest.mark.parametrize(
    ("path", "token", "words"),
    [
        (SHARDS + "s", TOKEN, "no such object, or a private one that HF_TOKEN does not open"),
        (SHARDS + "/nothing", TOKEN, "no such object"),
        (SHARDS + "@nothing", TOKEN, "no such object"),
        (SHARDS, "hf_OTHER", "no such object, or a private one that HF_TOKEN does not open"),
    ],
)
def test_what_is_not_there_or_not_allowed_is_one_line_without_a_token(hub, tmp_path, monkeypatch, path, token, words):
    _use(hub, monkeypatch, token)
    line = error_of(table_of, path, tmp_path / "cache")
    assert line.startswith(f"data.path={path}: ") and words in line and "hf_" not in line.replace("HF_TOKEN", "")


def test_a_hub_that_does_not_answer_is_one_line_after_the_budget(site, monkeypatch):
    with serving_hub(site) as hub:
        _use(hub, monkeypatch)
    line = error_of(open_store(SHARDS, Patience(first=0.01, most=0.02, budget=0.1)).list)
    assert line.startswith(f"{SHARDS}: ConnectError, in ")


def test_a_file_that_the_token_may_not_read_is_one_line(hub, site):
    store = open_store(SHARDS, Patience(first=0.01, most=0.02, budget=0.1))
    item = next(item for item in store.list() if item.name == "shard-000000.tar")
    hub.gated = True
    assert "access denied; check the credentials" in error_of(read_range, store, item, 0, 100)

"""Conversion of images on a server or in a bucket gives the bytes that it gives for the same files on a disk."""

import json

import pytest
import s3fs
from moto.server import ThreadedMotoServer

from perf.remote.server import serving
from pipeline.conversion.rewrite import Options
from pipeline.convert import convert, main
from pipeline.dataset.table import DatasetError, SampleTable
from support.photos import flat_colors, write_folder
from support.remote.sites import size_of, write_site


@pytest.fixture
def server(tmp_path):
    with serving(write_site(tmp_path / "site", count=40, a_shard=10, side=40)) as server:
        yield server


def files_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in (".tar", ".beton")}


@pytest.mark.parametrize(("format", "out"), [("beton", "x.beton"), ("wds", "x")])
def test_shards_of_a_server_convert_to_the_same_bytes_as_those_on_a_disk(server, tmp_path, format, out):
    for place, source in (("near", server.folder / "*.tar"), ("far", f"{server.address}/list.txt")):
        (tmp_path / place).mkdir()
        convert(source, tmp_path / place / out, Options(format), workers=1, progress=False)
    near, far = (tmp_path / place if format == "beton" else tmp_path / place / out for place in ("near", "far"))
    assert files_of(near) == files_of(far) != {}
    report = next((tmp_path / "far").rglob("*report.json"))
    assert json.loads(report.read_text())["source"] == f"{server.address}/list.txt"
    assert [path.name for path in (tmp_path / "far").iterdir() if path.name.startswith(".")] == []


def test_a_folder_of_a_bucket_converts(tmp_path, monkeypatch):
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "SECRET",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    try:
        files = s3fs.S3FileSystem(skip_instance_cache=True)
        files.mkdir("swave-convert")
        write_folder(tmp_path / "images", flat_colors(6))
        files.put(str(tmp_path / "images") + "/", "swave-convert/images/", recursive=True)
        convert("s3://swave-convert/images", tmp_path / "x.beton", Options("beton"), workers=1, progress=False)
    finally:
        server.stop()
    table = SampleTable.load(tmp_path / "x.npz")
    assert len(table) == 6 and table.classes[:2] == ("class0", "class1")


def test_a_second_try_fetches_only_what_the_first_did_not(server, tmp_path):
    *_, last = sorted(server.folder.glob("*.tar"))
    whole = last.read_bytes()
    last.write_bytes(b"no tar")  # the first try ends after all is fetched
    with pytest.raises(DatasetError, match=last.name):
        convert(f"{server.address}/list.txt", tmp_path / "x", Options("wds"), workers=1, progress=False)
    last.write_bytes(whole)
    server.asked.clear()
    convert(f"{server.address}/list.txt", tmp_path / "x", Options("wds"), workers=1, progress=False)
    assert set(+server.asked) == {"list.txt", last.name}


def test_a_cache_keeps_what_was_fetched_and_an_index_needs_one(server, tmp_path, capsys):
    arguments = [f"{server.address}/list.txt", str(tmp_path / "x.npz"), "--format", "index", "--workers", "1"]
    assert main(arguments) == 2
    assert capsys.readouterr().err == (
        "swave: --format=index of images elsewhere: give --cache DIR, where they are fetched to and stay\n"
    )
    assert main([*arguments, "--cache", str(tmp_path / "cache")]) == 0
    assert size_of(tmp_path / "cache") == size_of(server.folder)
    assert SampleTable.load(tmp_path / "x.npz").root.is_relative_to(tmp_path / "cache")


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("{server}/nowhere.txt", "SRC={server}/nowhere.txt: "),
        ("https://me:secret@host/x.tar", "SRC=https://host/x.tar: a name or password in the address"),
    ],
)
def test_a_mistaken_address_is_one_line_and_leaves_nothing(server, tmp_path, capsys, address, problem):
    out = tmp_path / "out" / "x.beton"
    assert main([address.format(server=server.address), str(out), "--format", "beton"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("swave: " + problem.format(server=server.address)) and line.count("\n") == 1
    assert "secret" not in line and not list(out.parent.iterdir())

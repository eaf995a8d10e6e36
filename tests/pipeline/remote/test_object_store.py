"""Objects on a web server: lists, byte ranges, faults and their lines."""

import os
import shutil
import signal
import subprocess
import threading
import time

import pytest

from perf.remote.server import serving
from pipeline.dataset.table import DatasetError
from pipeline.remote import faults
from pipeline.remote.faults import Changed, Missing, Patience
from pipeline.remote.fetching import fetch
from pipeline.remote.store import open_store, read_range
from support.small_datasets import error_of, write

SOON = Patience(timeout=2, first=0.01, most=0.02, budget=5)
DATA = bytes(range(256)) * 40


@pytest.fixture
def server(tmp_path):
    write(tmp_path, {"a.tar": DATA, "b-00.tar": b"0" * 100, "b-01.tar": b"1" * 200, "deep/c.tar": b"c"})
    with serving(tmp_path) as server:
        yield server


def first_of(server, name="a.tar"):
    store = open_store(f"{server.address}/{name}", SOON)
    return store, store.list()[0]


@pytest.mark.parametrize("fault", ["503", "429", "reset", "cut"])
def test_a_fault_of_the_server_is_tried_again(server, fault):
    store, item = first_of(server)
    server.faults += [fault, fault]
    assert read_range(store, item, 100, 5000) == DATA[100:5000]
    assert server.requests["GET"] == 3


def test_a_server_that_never_answers_ends_in_one_line_that_names_the_object_and_not_its_signature(server):
    store, item = first_of(server)
    store.patience = SOON._replace(budget=0.2)
    item = item._replace(address=item.address + "?X-Amz-Signature=SECRET")
    server.faults += ["503"] * 100
    line = error_of(read_range, store, item, 0, 10)
    assert "/a.tar: status 503, in " in line and "tries" in line and "SECRET" not in line


def test_after_a_stop_signal_there_are_tries_for_some_seconds_only(server, monkeypatch):
    monkeypatch.setattr(faults, "_last_try", faults._last_try)
    monkeypatch.setattr(faults, "GRACE", 0.3)
    store, item = first_of(server)
    store.patience = Patience()
    server.faults += ["503"]
    threading.Timer(0.05, faults.end_soon).start()
    assert read_range(store, item, 0, 10) == DATA[:10]  # a fault that passes
    server.faults += ["503"] * 100
    begun = time.monotonic()
    assert "/a.tar: status 503" in error_of(read_range, store, item, 0, 10)
    assert time.monotonic() - begun < 60 < store.patience.budget


def test_a_fetch_that_a_signal_ends_does_not_wait_for_a_server_that_fails(server, tmp_path):
    store = open_store(f"{server.address}/b-{{00..01}}.tar", Patience())
    items = store.list()
    server.faults += ["503"] * 1000

    def interrupt():
        while len(server.faults) == 1000:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: exit(7))
    threading.Thread(target=interrupt, daemon=True).start()
    begun = time.monotonic()
    with pytest.raises(SystemExit, match="7"):
        fetch(store, items, tmp_path, lambda *_: None, lambda _: None)
    signal.signal(signal.SIGUSR1, before)
    assert time.monotonic() - begun < 60 < store.patience.budget


def test_a_host_without_a_server_ends_in_one_line(server):
    address = server.address.rpartition(":")[0] + ":1/x.tar"
    assert f"{address}: no connection" in error_of(open_store(address, SOON._replace(budget=0.1)).list)


def test_another_object_under_the_same_name_is_an_error_that_names_it(server):
    store, item = first_of(server)
    (server.folder / "a.tar").write_bytes(DATA[::-1])
    with pytest.raises(Changed, match=r"/a\.tar: the object changed"):
        read_range(store, item, 0, 10)


def test_a_missing_object_is_told_from_a_server_that_fails(server):
    store, item = first_of(server)
    server.gone.add("a.tar")
    with pytest.raises(Missing, match=r"/a\.tar: no such object"):
        read_range(store, item, 0, 10)


def test_braces_and_lists_name_objects_and_a_list_with_sizes_is_the_only_request(server):
    numbered = open_store(server.address + "/b-{00..01}.tar", SOON).list()
    assert [(item.name, item.size) for item in numbered] == [("b-00.tar", 100), ("b-01.tar", 200)]
    lines = ["# shards", "b-00.tar\t100", f"{server.address}/deep/c.tar\t1\t", "deep/.hidden.tar", ""]
    (server.folder / "list.txt").write_text("\n".join(lines))
    server.requests.clear()
    listed = open_store(f"{server.address}/list.txt", SOON).list()
    assert [(item.name, item.size) for item in listed] == [("b-00.tar", 100), ("deep/c.tar", 1)]
    assert server.requests == {"GET": 1}


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("https://me:secret@host/x.tar", "a name or password in the address"),
        ("https://host/x.tar?sig=secret", "a query in the address"),
    ],
)
def test_secrets_in_an_address_are_refused_without_showing_them(address, problem):
    line = error_of(open_store, address)
    assert problem in line and "secret" not in line


def test_a_list_that_leads_out_of_its_folder_is_refused(server):
    (server.folder / "list.txt").write_text("deep/%2e%2e/%2e%2e/x.tar\t1\n")
    assert "leads out of its folder" in error_of(open_store(f"{server.address}/list.txt", SOON).list)


def test_https_reads_with_the_certificates_of_openssl_only(tmp_path, monkeypatch):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    made = (tmp_path / "cert.pem", tmp_path / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-out", str(made[0]), "-keyout", str(made[1])]
    subprocess.run(command, check=True, capture_output=True)
    write(tmp_path / "site", {"a.tar": DATA})
    with serving(tmp_path / "site", made) as server:
        address = f"{server.address}/a.tar"
        with pytest.raises(DatasetError, match="its certificate is not accepted; name its authority in SSL_CERT_FILE"):
            open_store(address, SOON).list()
        monkeypatch.setenv("SSL_CERT_FILE", str(made[0]))
        store = open_store(address, SOON)
        assert read_range(store, store.list()[0], 5, 50) == DATA[5:50]

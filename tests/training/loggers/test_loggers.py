"""run.loggers with the real packages: what a run with a kill in the middle has written, read back."""

import contextlib
import csv
import importlib.util
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time

import pytest

from config.errors import ConfigError
from config.recipe import ROOT, load_config
from support.tiny_runs import kill, losses, make_workplace, train, wait_for_step
from training.distributed import free_port
from training.loggers.csv_file import CsvFile
from training.loggers.open import Loggers

PNG = b"\x89PNG\r\n\x1a\n" + bytes.fromhex(  # 1 x 1, RGBA
    "0000000d4948445200000001000000010806000000 1f15c4890000000d49444154789c6360f8cfc0f01f00050001ff5c4a2d"
    "1c0000000049454e44ae426082".replace(" ", "")
)
needs = {
    name: pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")
    for name in ("wandb", "mlflow")
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return make_workplace(tmp_path_factory.mktemp("logged"))


def interrupted(workplace, name, *settings, environment=None, stop=kill):
    """A run that is killed or stopped after a checkpoint and ends at the second start; its directory and output."""
    words = (f"run.loggers=[{','.join(settings)}]", "evaluation.watched=32", "run.epochs=2")
    process = train(workplace, name, *words, environment=environment, wait=False)
    wait_for_step(workplace, name, 5, process)
    stop(process)
    return workplace / name, train(workplace, name, *words, environment=environment)


@pytest.mark.slow(seconds=25)
def test_tensorboard_and_csv_have_the_figures_of_metrics_once_and_the_pictures(workplace):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, _ = interrupted(workplace, "plain", "tensorboard", "csv")
    expected = losses(workplace, "plain")
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    assert {one.step: one.value for one in events.Scalars("loss")} == pytest.approx(expected, rel=1e-6)
    assert set(events.Tags()["images"]) == {"crops", "neighbors", "prototypes"}
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {int(row["step"]): float(row["value"]) for row in rows if row["name"] == "loss"} == expected
    assert len([row for row in rows if row["name"] == "loss"]) == len(expected), "each step once"


def terminate(process):
    process.terminate()
    process.communicate(timeout=60)


def wandb_records(file):
    """The records of an offline run: a LevelDB log, whose blocks of 32 KiB begin after 7 bytes of wandb's own."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        if kind == 0:
            break
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


@pytest.mark.slow(seconds=10)
def test_deepspeeds_own_monitors_write_below_the_run_and_not_where_it_was_started(workplace):
    before = set(os.listdir(ROOT))
    enabled = [f"engine.deepspeed.{name}.enabled=true" for name in ("tensorboard", "csv_monitor", "flops_profiler")]
    output = train(workplace, "monitored", "run.epochs=1", *enabled)
    written = workplace / "monitored" / "deepspeed"
    assert list((written / "tensorboard").glob("events.*")) and list((written / "csv_monitor").glob("*.csv"))
    assert "Flops Profiler" in (written / "flops_profile.txt").read_text() and "Flops Profiler" not in output
    assert set(os.listdir(ROOT)) == before


@needs["wandb"]
@pytest.mark.slow(seconds=30)
def test_wandbs_offline_folders_are_one_run_with_all_figures_and_pictures(workplace):
    """After a signal. A kill also ends wandb's own process, which then loses what it had not written yet."""
    run, output = interrupted(workplace, "wandb", "wandb", environment={"WANDB_MODE": "offline"}, stop=terminate)
    assert "failed" not in output
    folders = sorted(run.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(folders) == 2, "one of each start"
    found, identities, settings = {}, set(), {}
    for file in folders:
        for record in wandb_records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                identities.add(record.run.run_id)
                settings |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if kind == "history":
                line = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
                if "loss" in line:
                    found[line["step"]] = line["loss"]
    assert identities == {(run / "wandb" / "id").read_text()}
    assert found == pytest.approx(losses(workplace, "wandb"))
    assert settings["optimizer.base_lr"] == 0.5
    pictures = {re.sub(r"_.*", "", path.name) for path in run.glob("wandb/offline-run-*/files/media/images/*.png")}
    assert pictures == {"crops", "neighbors", "prototypes"}


def check_mlflow(client, run, expected):
    identity = (run / "mlflow" / "id").read_text()
    found = client.get_run(identity)
    assert found.info.status == "FINISHED" and found.data.params["optimizer.base_lr"] == "0.5"
    assert len(client.search_runs([found.info.experiment_id])) == 1, "the second start went on with the first's run"
    history = {metric.step: metric.value for metric in client.get_metric_history(identity, "loss")}
    assert history == pytest.approx(expected)
    names = {
        re.split(r"[%/~+]", path.path.removeprefix("images/"))[0] for path in client.list_artifacts(identity, "images")
    }
    assert names == {"crops", "neighbors", "prototypes"}


@needs["mlflow"]
@pytest.mark.slow(seconds=30)
def test_mlflows_database_has_one_run_with_all_figures_and_pictures(workplace):
    from mlflow.tracking import MlflowClient

    run, output = interrupted(workplace, "mlflow", "mlflow")
    assert "failed" not in output
    client = MlflowClient(tracking_uri=f"sqlite:///{run}/mlflow/mlflow.db")
    check_mlflow(client, run, losses(workplace, "mlflow"))


@needs["mlflow"]
@pytest.mark.slow(seconds=90)
def test_an_mlflow_server_gets_the_same(workplace, tmp_path):
    from mlflow.tracking import MlflowClient

    port = free_port()
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", str(tmp_path / "a")]
    server = subprocess.Popen([sys.executable, "-m", "mlflow", *words], cwd=tmp_path, start_new_session=True,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        address, client = f"http://127.0.0.1:{port}", MlflowClient(tracking_uri=f"http://127.0.0.1:{port}")
        for _ in range(240):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            assert server.poll() is None
            time.sleep(0.5)
        run, output = interrupted(workplace, "server", "mlflow", environment={"MLFLOW_TRACKING_URI": address})
        assert "failed" not in output
        check_mlflow(client, run, losses(workplace, "server"))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, 9)
        server.wait()


def test_a_logger_that_fails_is_dropped_with_one_line_and_the_others_go_on(tmp_path):
    """metrics.csv is a folder: it cannot be opened. Then TensorBoard's file is closed behind its back."""
    (tmp_path / "metrics.csv").mkdir()
    lines = []
    loggers = Loggers(["csv", "tensorboard"], tmp_path, {}, 0, lines.append)
    loggers.figures(1, {"loss": 1.0, "text": "left out"})
    assert len(lines) == 1 and lines[0].startswith("run.loggers: csv failed and gets nothing more (IsADirectoryError")
    loggers.picture(1, "crops", b"no picture")  # too short for a PNG
    assert len(lines) == 2 and "tensorboard failed" in lines[1]
    loggers.figures(2, {"loss": 1.0})
    loggers.close()
    assert len(lines) == 2


def test_a_missing_package_is_told_before_a_run_starts(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "wandb" else found(name, *more)
    )
    with pytest.raises(ConfigError, match=r"run.loggers=.*wandb.*pip install wandb"):
        load_config(["config/demo.yaml", "run.loggers=[csv,wandb]"])
    with pytest.raises(ConfigError, match="expected a list of tensorboard, wandb, mlflow, csv"):
        load_config(["config/demo.yaml", "run.loggers=[neptune]"])


def test_csv_drops_what_a_killed_run_wrote_beyond_its_checkpoint(tmp_path):
    for done, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        file = CsvFile(tmp_path / "m.csv", done, print)
        for step in steps:
            file.figures(step, {"loss": step + done / 8})
        file.close()
        with open(tmp_path / "m.csv", "a") as half:
            half.write("5,lo")  # a kill in the middle of a line
    rows = (tmp_path / "m.csv").read_text().splitlines()
    assert rows == ["step,name,value", "1,loss,1.0", "2,loss,2.0", "3,loss,3.25", "4,loss,4.25", "5,lo"]

"""The state of a run: all parts come back from a checkpoint, and a state.json that lacks something is one line."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from config.recipe import load_config
from model.monitor import CodeMonitor
from model.optimizer.build import build_optimizer
from model.optimizer.segments import Layout
from pipeline.crops import crops_from_config
from pipeline.dataset.open import open_splits
from support.old_checkpoints import OLD, old_run
from support.tiny_runs import train
from training.auto import fit
from training.build import build_loader, build_queue, build_teacher, starting_network
from training.checkpoint.save_load import CheckpointError
from training.counters import Clock
from training.distributed import Cluster
from training.run_state import RunState

CHECKPOINT = "step-000000006"
KEYS = sorted(json.loads((OLD / "swav" / CHECKPOINT / "state.json").read_text()))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = old_run(tmp_path_factory.mktemp("run"), "swav")
    data = (f"data.path={root}/images", f"data.cache={root}/tables", f"run.directory={root}/swav")
    return load_config([str(root / "tiny.yaml"), *data, "engine.stage=0"])


@pytest.fixture(scope="module")
def run_state(config):
    """The parts of a run on one process, as train.py builds them, around an engine at stage 0; each test loads anew."""
    table, _ = open_splits(config.data, progress=False)
    fit(config, len(table.usable()), Cluster())
    loader = build_loader(config, table, crops_from_config(config.crops, "torchvision"), Cluster())
    network = starting_network(config.model, [16])
    optimizer = build_optimizer(config.optimizer, network)
    names = {parameter: name for name, parameter in network.named_parameters()}
    optimizer.layout = Layout.of_whole(optimizer.param_groups, names)
    engine = SimpleNamespace(optimizer=None, fp16_enabled=lambda: False, zero_optimization_stage=lambda: 0)
    queue, teacher = build_queue(config, Cluster()), build_teacher(config, network, Cluster())
    monitor = CodeMonitor(config.model.prototypes, config.model.embedding_dim, "cpu", config.model.heads)
    yield RunState(engine, network, optimizer, queue, None, loader, monitor, Clock(), teacher)
    loader.close()


@pytest.fixture
def checkpoint(tmp_path):
    shutil.copytree(OLD / "swav" / CHECKPOINT, tmp_path / CHECKPOINT)
    return tmp_path / CHECKPOINT


def change_state(checkpoint, change):
    state = json.loads((checkpoint / "state.json").read_text())
    change(state)
    (checkpoint / "state.json").write_text(json.dumps(state))


def test_all_parts_come_back_from_a_checkpoint(run_state, checkpoint, tmp_path, config):
    step, last_epoch = run_state.load(checkpoint, Cluster())
    assert step == 6 and last_epoch["mean_loss"] > 1 and run_state.queue.full
    before = {name: tensor.clone() for name, tensor in run_state.tensors(Cluster()).items()}
    assert {"own/queue", "alike/teacher/prototypes.weight", "own/teacher/backbone.bn1.running_mean"} <= set(before)
    saved = run_state.save(tmp_path / "checkpoints", config, Cluster(), step, last_epoch)
    for tensor in run_state.tensors(Cluster()).values():
        tensor.zero_()
    assert run_state.load(saved, Cluster()) == (step, last_epoch)
    after = run_state.tensors(Cluster())
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    keys = ("images", "digest", "monitor", "loader", "loss_scale", "shapes", "buffers", "last_epoch")
    old, new = (json.loads((path / "state.json").read_text()) for path in (checkpoint, saved))
    assert {key: new[key] for key in keys} == {key: old[key] for key in keys} and sorted(new) == sorted(old)


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_is_one_line(run_state, checkpoint, key):
    change_state(checkpoint, lambda state: state.pop(key))
    with pytest.raises(CheckpointError, match=rf"{CHECKPOINT}: state\.json lacks '{key}'"):
        run_state.load(checkpoint, Cluster())


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_another_type_is_one_line(run_state, checkpoint, key):
    change_state(checkpoint, lambda state: state.update({key: None}))
    with pytest.raises(CheckpointError, match=rf"{CHECKPOINT}: state\.json: '{key}' is null, expected an? \w+$"):
        run_state.load(checkpoint, Cluster())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("clock", {}),
        ("clock", {"seconds": [], "training_seconds": 1}),
        ("loader", {"epoch": 1, "samples": 2}),
        ("loader", {"epoch": "one", "samples": 2, "count": 1, "checksum": 1}),
        ("monitor", {"hard": [1.0]}),
        ("monitor", {"unknown": [1.0]}),
        ("monitor", {"loss": ["x"]}),
        ("last_epoch", {"mean_loss": "low"}),
    ],
)
def test_a_malformed_value_is_one_line(run_state, checkpoint, key, value):
    change_state(checkpoint, lambda state: state.update({key: value}))
    with pytest.raises(CheckpointError, match=rf"{CHECKPOINT}: state\.json: '{key}' is malformed \(\w+Error: "):
        run_state.load(checkpoint, Cluster())


@pytest.mark.parametrize("change", [{"world_size": 1}, {"world_size": 3}, {"shapes": {}}, {"buffers": [1]}])
def test_a_state_that_does_not_fit_its_files_is_one_line(run_state, checkpoint, change):
    change_state(checkpoint, lambda state: state.update(change))
    with pytest.raises(CheckpointError, match=CHECKPOINT):
        run_state.load(checkpoint, Cluster())


def test_a_run_without_a_key_ends_with_one_line_and_exit_code_2(tmp_path):
    root = old_run(tmp_path, "swav")
    folder = root / "swav" / "checkpoints" / CHECKPOINT
    change_state(folder, lambda state: state.pop("clock"))
    sign(folder)
    data = (f"data.path={root}/images", f"data.cache={root}/tables")
    process = train(root, "swav", *data, wait=False)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    assert output.strip().splitlines()[-1] == f"swave: {folder}: state.json lacks 'clock'; another program wrote it"
    assert "Traceback" not in output


def sign(folder):
    """Rewrite the manifest, so that the folder counts as a complete checkpoint."""
    from common.files import fingerprint

    files = [path for path in folder.iterdir() if path.name != "manifest.json"]
    (folder / "manifest.json").write_text(json.dumps({path.name: fingerprint(path) for path in files}))

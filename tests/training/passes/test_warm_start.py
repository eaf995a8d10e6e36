"""A run that goes on from weights: its first pass sets prototypes, adapts batch norm and fills the queue, once."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from config.recipe import ConfigError, load_config
from support.tiny_runs import kill, losses, make_workplace, train, wait_for_step
from training.auto import fit
from training.build import build_network, starting_network
from training.distributed import Cluster
from training.trained_network import full_weights

# Batch norm over all processes, so that their number changes only rounding; prototypes stay as the pass leaves them.
SETTINGS = (
    *("run.epochs=1", "checkpoint={every: 1 step, keep: 99}", "engine.sync_batch_norm=0", "swav.freeze_prototypes=99"),
    *("swav.queue.start_epoch=auto", "swav.teacher.momentum=0.9"),
)
STEPS = 8  # of an epoch, and of the pass: 64 images for each of 12 prototypes are more than an epoch has


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    workplace = make_workplace(tmp_path_factory.mktemp("run"))
    model = load_config([str(workplace / "tiny.yaml")]).model
    torch.manual_seed(1)
    network = build_network({**model, "heads": 1})
    save_file(network.state_dict(), workplace / "whole.safetensors")
    save_file(network.backbone.state_dict(), workplace / "backbone.safetensors")
    return workplace


def prototypes_of(run, step):
    return full_weights(run / f"checkpoints/step-{step:09d}")["prototypes.weight"]


@pytest.mark.slow
def test_the_first_pass_sets_prototypes_adapts_batch_norm_and_fills_the_queue_once(workplace):
    settings = (*SETTINGS, f"model.weights={workplace / 'backbone.safetensors'}")
    output, run = train(workplace, "one", *settings), workplace / "one"
    for line in ("model.prototypes_from=kmeans", "swav.queue.start_epoch=0", f"model.adapt_steps={STEPS}"):
        assert line in output
    weights, own = full_weights(run / "checkpoints/step-000000001"), own_tensors(run, 1)
    assert int(weights["backbone.bn1.num_batches_tracked"]) == 2 * (STEPS + 1)  # at both resolutions
    assert own["own/queue"].ne(0).any(-1).all()
    prototypes, random = weights["prototypes.weight"], build_network(load_config([str(run / "config.yaml")]).model)
    assert torch.equal(prototypes, prototypes_of(run, STEPS))
    assert not torch.isclose(prototypes, random.prototypes.weight.detach()).all(1).any()
    torch.testing.assert_close(own_tensors(run, 1)["alike/teacher/prototypes.weight"], prototypes)

    process = train(workplace, "killed", *settings, wait=False)
    wait_for_step(workplace, "killed", 3, process)
    kill(process)
    output = train(workplace, "killed", *settings)
    assert "resuming from" in output and "first embeddings" not in output
    assert losses(workplace, "killed") == losses(workplace, "one")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [3])
def test_two_processes_start_from_the_prototypes_of_one(workplace, stage):
    settings = (*SETTINGS, "swav.teacher.momentum=0", f"model.weights={workplace / 'backbone.safetensors'}")
    for ranks, more in ((1, "engine.stage=0"), (2, f"engine.stage={stage}")):
        train(workplace, f"ranks{ranks}", *settings, more, ranks=ranks)
    one, two = (prototypes_of(workplace / f"ranks{ranks}", 1) for ranks in (1, 2))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-4)
    assert losses(workplace, "ranks2")[1] == pytest.approx(losses(workplace, "ranks1")[1], rel=1e-3)


def own_tensors(run, step):
    return load_file(run / f"checkpoints/step-{step:09d}/rank-00000.safetensors")


@pytest.mark.parametrize(("file", "source"), [("whole", "weights"), ("backbone", "kmeans")])
def test_auto_takes_the_prototypes_of_the_weights_if_they_fit_and_else_those_of_kmeans(workplace, file, source):
    config = load_config([str(workplace / "tiny.yaml"), f"model.weights={workplace / file}.safetensors"])
    fit(config, 68, Cluster())
    assert config.model.prototypes_from == "auto"
    lines = []
    network = starting_network(config.model, say=lines.append)
    assert config.model.prototypes_from == source and f"auto: model.prototypes_from={source} " in lines[-1]
    given = load_file(workplace / "whole.safetensors")["prototypes.weight"]
    assert torch.allclose(network.prototypes.weight, given) == (source == "weights")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("method=deepclusterv2", "swav.queue.length=0", "swav.freeze_prototypes=0"),
            "deepclusterv2 does so before every",
        ),
        (("model.prototypes=65",), "an epoch has fewer images than 65 prototypes"),
    ],
)
def test_kmeans_that_makes_no_sense_is_refused_in_one_line(workplace, settings, message):
    config = load_config([str(workplace / "tiny.yaml"), "model.prototypes_from=kmeans", *settings])
    with pytest.raises(ConfigError, match=f"^model.prototypes_from=kmeans: {message}"):
        fit(config, 68, Cluster())

"""The settings that each method requires, and the crops that may give the codes."""

import pytest
import torch

from config.recipe import ROOT, ConfigError, load_config
from model.loss import swapped_prediction
from model.sinkhorn import sinkhorn
from training.auto import fit
from training.build import build_network
from training.disk_space import checkpoint_gb
from training.distributed import Cluster


def fitted(*settings, images=1000):
    config = load_config([str(ROOT / "config/demo.yaml"), "data.path=/images", "run.batch_size=50", *settings])
    fit(config, images, Cluster())
    return config


AUTO = ("swav.freeze_prototypes=auto", "swav.queue.length=auto")


def test_the_methods_that_cluster_have_three_heads_and_no_queue_by_default():
    for method in ("deepclusterv2", "selav2"):
        config = fitted(f"method={method}", *AUTO)
        assert (config.model.heads, config.swav.queue.length) == (3, 0)
        assert build_network(config.model).prototypes.weight.shape == (3 * 128, 64)
    assert fitted(*AUTO).model.heads == 1
    assert fitted("method=selav2", "model.heads=2", *AUTO).model.heads == 2


def test_fitting_a_second_time_changes_nothing():
    config = fitted("method=deepclusterv2", *AUTO)
    again = config.copy()
    assert fit(again, 1000, Cluster()) == [] and again == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["method=moco"], "method=moco: expected swav, deepclusterv2, selav2 or distill"),
        (["model.heads=0"], "model.heads=0: expected at least 1"),
        (["swav.hard=maybe"], "swav.hard=maybe: expected true or false"),
        (["method=selav2", "swav.queue.length=100"], "swav.queue.length=100: method=selav2 has no queue; set it to 0"),
        (["method=selav2", "swav.hard=true"], "swav.hard=true: it is for method=swav, the targets of selav2 are hard"),
        (["method=deepclusterv2"], "swav.freeze_prototypes=30: with method=deepclusterv2 k-means alone moves the"),
        (
            ["method=deepclusterv2", "model.prototypes=1001", *AUTO],
            "model.prototypes=1001: deepclusterv2 clusters an epoch's 1000 images into as many; lower it",
        ),
    ],
)
def test_a_mistake_is_one_line(settings, message):
    with pytest.raises(ConfigError) as error:
        fitted(*settings)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("optimizer", "states"), [("lars", 1), ("adamw", 2), ("muon", 2)])  # Muon leaves them to AdamW
def test_the_disk_check_counts_all_heads(optimizer, states):
    settings = f"optimizer.name={optimizer}", "model.prototypes=30000"
    one, three = (checkpoint_gb(fitted(*settings, f"model.heads={heads}")) for heads in (1, 3))
    assert three - one == pytest.approx(2 * 30_000 * 64 * 4 * (1 + states) / 1e9)


# ---- mixed resolutions, and codes from any subset of the crops -----------------------------------------------------
def network_and_crops(groups, batch=4):
    """A tiny network, and noise for it: (views, size) of each resolution."""
    config = fitted("model.prototypes=6", "model.embedding_dim=8", "model.hidden_dim=16")
    torch.manual_seed(0)
    return build_network(config.model), [torch.randn(n * batch, 3, size, size) for n, size in groups]


@pytest.mark.parametrize(
    ("groups", "assigning"),
    [
        (((2, 20),), (0, 1)),  # a single resolution
        (((1, 24), (1, 16)), (0, 1)),  # the two assigning crops of different sizes
        (((2, 20), (3, 12)), (0,)),
        (((2, 20), (3, 12)), (4, 1, 2)),  # small ones too, in any order
        (((2, 20), (1, 16), (2, 12)), (0, 1, 2, 3, 4)),
    ],
)
def test_codes_come_from_any_crops_of_any_resolution(groups, assigning):
    network, crops = network_and_crops(groups)
    views = sum(n for n, _ in groups)
    embeddings, scores, *_ = network(crops, 4)
    assert embeddings.shape == (views, 4, 8) and scores.shape == (views, 4, 6)
    codes = sinkhorn(scores[list(assigning)].detach(), 0.05, 3)
    loss = swapped_prediction(codes, scores, assigning, 0.1)
    logs = torch.log_softmax(scores / 0.1, dim=-1)
    pairs = [(i, other) for i in range(len(assigning)) for other in range(views) if other != assigning[i]]
    by_hand = [-(codes[i] * logs[other]).sum(-1).mean() for i, other in pairs]
    assert loss.item() == pytest.approx(torch.stack(by_hand).mean().item(), rel=1e-5)


def test_a_crop_is_scored_as_if_its_resolution_were_alone():
    """In the backbone batch norm computes statistics per resolution, so features do not depend on other resolutions."""
    network, crops = network_and_crops(((2, 20), (3, 12)))
    network.projection_head[1].eval()  # this one sees all crops together, as in the published code
    both = network(crops, 4)[1]
    torch.testing.assert_close(both[:2], network(crops[:1], 4)[1])
    torch.testing.assert_close(both[2:], network(crops[1:], 4)[1])

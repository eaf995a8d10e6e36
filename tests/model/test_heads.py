"""Several heads of prototypes, and hard codes."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from evaluation.backbones import open_backbone
from evaluation.clusters import prototype_scores
from export.formats import write_swav
from model.backbone import build_backbone
from model.loss import swapped_prediction
from model.monitor import CodeMonitor
from model.sinkhorn import hard_codes, sinkhorn
from model.swav import SwAV
from model.weights import find, published_names, take_weights
from support.ranks import count_collectives, run_ranks
from training.trained_network import Trained

SMALL = {"block": "basic", "layers": (1, 1), "base_width": 8, "stem": "small"}


def three_heads():
    """Scores [crops, batch, heads * prototypes] of two assigning and three other crops."""
    embeddings = functional.normalize(torch.randn(5, 16, 6, generator=torch.Generator().manual_seed(2)), dim=-1)
    weights = functional.normalize(torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(3)), dim=-1)
    return embeddings @ weights.flatten(0, 1).T, [embeddings @ weight.T for weight in weights]


def test_heads_have_the_codes_and_the_mean_loss_of_as_many_runs():
    together, each = three_heads()
    codes = sinkhorn(together[:2], 0.05, 3, heads=3)
    assert codes.shape == (2, 16, 21)
    alone = [sinkhorn(scores[:2], 0.05, 3) for scores in each]
    torch.testing.assert_close(codes, torch.cat(alone, dim=-1), rtol=1e-5, atol=1e-6)
    losses = [swapped_prediction(code, scores, (0, 1), 0.1) for code, scores in zip(alone, each, strict=True)]
    actual = swapped_prediction(codes, together, (0, 1), 0.1, heads=3)
    assert actual.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-6)


def test_one_head_is_the_textbook_loss_bit_for_bit():
    scores = three_heads()[1][0]
    codes = sinkhorn(scores[:2], 0.05, 3)
    assert torch.equal(codes, sinkhorn(scores[:2], 0.05, 3, heads=1))
    logs = torch.log_softmax(scores / 0.1, dim=-1)
    expected = -(codes * (logs.sum(0) - logs[[0, 1]])).sum(-1).mean() / 4
    assert torch.equal(swapped_prediction(codes, scores, (0, 1), 0.1), expected)


def heads_on_a_rank(scores):
    calls = count_collectives()
    codes = sinkhorn(scores, 0.05, 3, heads=3, check=False)
    return codes.numpy(), calls  # an array, because a tensor's memory goes with the process that sends it


def test_heads_share_the_collectives_and_the_batch_of_all_ranks():
    together = three_heads()[0][:2]
    (first, calls), (second, _) = run_ranks([together[:, :10], together[:, 10:]], heads_on_a_rank)
    assert calls == ["all_reduce"] * 3
    whole = sinkhorn(together, 0.05, 3, heads=3)
    assert np.allclose(np.concatenate([first, second], axis=1), whole.numpy(), rtol=1e-5, atol=1e-6)


def test_hard_codes_are_one_hot_in_each_head_and_their_loss_is_the_cross_entropy():
    together, _ = three_heads()
    soft = sinkhorn(together[:2], 0.05, 3, heads=3)
    hard = hard_codes(soft, 3)
    assert hard.shape == soft.shape and set(hard.unique().tolist()) == {0.0, 1.0}
    each = hard.unflatten(-1, (3, 7))
    assert torch.equal(each.sum(-1), torch.ones(2, 16, 3))
    assert torch.equal(each.argmax(-1), soft.unflatten(-1, (3, 7)).argmax(-1))
    logits = (together / 0.1).unflatten(-1, (3, 7))
    by_hand = [
        functional.cross_entropy(logits[other].flatten(0, 1), each[crop].argmax(-1).flatten())
        for crop in (0, 1)
        for other in range(5)
        if other != crop
    ]
    loss = swapped_prediction(hard, together, (0, 1), 0.1, heads=3)
    assert loss.item() == pytest.approx(torch.stack(by_hand).mean().item(), rel=1e-6)


def test_a_network_of_three_heads_scores_them_side_by_side():
    torch.manual_seed(0)
    three = SwAV(build_backbone("resnet", **SMALL), 12, 6, 10, heads=3)
    embeddings, scores, *_ = three([torch.randn(8, 3, 16, 16)], 4)
    assert scores.shape == (2, 4, 30)
    for head, weight in enumerate(three.prototypes.weight.chunk(3)):
        torch.testing.assert_close(scores[..., 10 * head : 10 * head + 10], embeddings @ weight.T)


def test_several_heads_keep_their_weights_under_the_published_names():
    torch.manual_seed(0)
    three = SwAV(build_backbone("resnet", **SMALL), 12, 6, 10, heads=3)
    published = published_names(three.state_dict(), heads=3)
    assert [key for key in published if "prototypes" in key] == [f"prototypes.prototypes{n}.weight" for n in range(3)]
    assert find({f"module.{key}": value for key, value in published.items()}).head_count == 3
    assert find(published_names(SwAV(build_backbone("resnet", **SMALL), 12, 6, 10).state_dict())).head_count == 1
    again = SwAV(build_backbone("resnet", **SMALL), 12, 6, 10, heads=3)
    take_weights(again, {f"module.{key}": value for key, value in published.items()})
    for key, value in three.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


def test_an_export_of_several_heads_is_read_back_and_its_first_head_gives_the_clusters(tmp_path):
    torch.manual_seed(0)
    options = {"layers": [1, 1, 1, 1], "base_width": 8}
    three = SwAV(build_backbone("resnet", **options), 12, 6, 10, heads=3).eval()
    write_swav(Trained(tmp_path, {}, three), tmp_path / "three.pth")
    actual = open_backbone(str(tmp_path / "three.pth")).swav
    assert actual.heads == 3
    for key, value in three.state_dict().items():
        torch.testing.assert_close(actual.state_dict()[key], value)
    features = torch.rand(5, three.backbone.feature_dim)
    with torch.no_grad():
        embeddings = functional.normalize(three.projection_head(features), dim=1)
        expected = embeddings @ three.prototypes.weight[:10].T
    torch.testing.assert_close(prototype_scores(actual, features), expected)


def test_the_monitor_counts_each_heads_prototypes():
    codes = functional.one_hot(torch.tensor([[[0, 1], [0, 2], [0, 3]]]), 4).float().flatten(-2)  # [1, 3, 2 * 4]
    monitor = CodeMonitor(4, 2, heads=2)
    monitor.update(codes, torch.zeros(1, 3, 2), torch.tensor(1.0))
    actual = monitor.summary()
    assert actual["prototypes_in_use"] == 0.5  # one of the first head's, three of the second's
    assert actual["mean_code_entropy"] == pytest.approx((0 + math.log(3)) / 2)
    assert actual["code_entropy"] == 0

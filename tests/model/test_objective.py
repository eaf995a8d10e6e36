"""The codes and the loss of a step, against the paper's equations written out; and the crops that give the codes."""

import math

import pytest
import torch
from torch.nn import functional

from model.objective import Objective
from model.views import select_views

K, HEADS, BATCH, QUEUED = 6, 2, 8, 16


def random_scores(crops, rows, seed):
    """Cosines [crops, rows, HEADS * K]."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = functional.normalize(torch.randn(crops, rows, 5, generator=generator), dim=2)
    return embeddings @ functional.normalize(torch.randn(HEADS * K, 5, generator=generator), dim=1).T


def objective(**changes):
    settings = {"assigning": (0, 1), "epsilon": 0.05, "iterations": 3, "temperature": 0.1, "prototypes": K}
    return Objective(**settings | {"heads": HEADS} | changes)


def codes_by_hand(scores, epsilon, iterations):
    """Equation 5 for one crop and head: rows and columns of exp(scores / epsilon) normalized in turn."""
    plan = torch.exp(scores.double() / epsilon).T
    for _ in range(iterations):
        plan = plan / plan.sum(1, keepdim=True) / K
        plan = plan / plan.sum(0, keepdim=True) / len(scores)
    return (plan * len(scores)).T


@pytest.mark.parametrize("hard", [False, True])
def test_codes_are_equation_5_over_batch_and_queue_for_each_crop_and_head(hard):
    scores, queue_scores = random_scores(2, BATCH, 0), random_scores(2, QUEUED, 1)
    codes = objective(hard=hard).codes(scores, queue_scores)
    assert codes.shape == (2, BATCH, HEADS * K) and not codes.requires_grad
    for crop in range(2):
        for head in range(HEADS):
            columns = slice(head * K, (head + 1) * K)
            together = torch.cat([queue_scores[crop], scores[crop]])[:, columns]
            expected = codes_by_hand(together, 0.05, 3)[QUEUED:]
            if hard:
                expected = functional.one_hot(expected.argmax(1), K).double()
            torch.testing.assert_close(codes[crop, :, columns].double(), expected, rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_mean_of_equation_2_over_equation_6s_pairs():
    scores = random_scores(4, BATCH, 2).requires_grad_()
    ours = objective(assigning=(1, 3), heads=1, prototypes=HEADS * K)
    codes = ours.codes(ours.of_assigning(scores))
    log_predictions = torch.log_softmax(scores / 0.1, dim=2)
    pairs = [
        -(code * log_predictions[crop]).sum(1).mean()
        for code, source in zip(codes, (1, 3), strict=True)
        for crop in range(4)
        if crop != source
    ]
    loss = ours.loss(codes, scores)
    assert float(loss.detach()) == pytest.approx(float(sum(pairs).detach()) / len(pairs), rel=1e-5)
    loss.backward()
    assert scores.grad is not None and scores.grad.abs().sum() > 0


def test_clusters_serve_as_codes_that_every_crop_predicts():
    scores = random_scores(3, BATCH, 3)
    targets = torch.arange(HEADS * BATCH).reshape(HEADS, BATCH) % K
    targets[0, 0] = -100  # an image without a target
    ours = objective()
    codes = ours.codes(ours.of_assigning(scores), None, targets)
    assert codes.shape == (2, BATCH, HEADS * K) and codes[0, 0, :K].sum() == 0
    assert torch.equal(codes[1, :, K:].argmax(1), targets[1])
    logs = torch.log_softmax((scores / 0.1).unflatten(2, (HEADS, K)), dim=3)
    expected = -(codes[0].unflatten(1, (HEADS, K)) * logs).sum() / (3 * BATCH * HEADS)
    assert float(ours.loss(codes, scores, targets)) == pytest.approx(float(expected), rel=1e-5)
    assert float(expected) < math.log(K) + 1 / 0.1


@pytest.mark.parametrize(("views", "copied"), [((0, 1), False), ((2, 3), False), ((1,), False), ((1, 0), True)])
def test_crops_that_follow_one_another_are_not_copied(views, copied):
    values = torch.randn(4, 3, 2)
    chosen = select_views(values, views)
    assert torch.equal(chosen, values[list(views)])
    assert (chosen.untyped_storage().data_ptr() != values.untyped_storage().data_ptr()) == copied

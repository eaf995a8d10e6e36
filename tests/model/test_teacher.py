"""The teacher for the codes: a moving average of the network, and its view of the assigning crops alone."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from evaluation.features import evaluation_mode
from model.backbone import build_backbone
from model.batchnorm import replace_batch_norm
from model.swav import SwAV
from model.teacher import Teacher, momentum_at, only_views

TINY = {"block": "basic", "layers": [1, 1], "base_width": 8, "stem": "small"}
BATCH = 4


def network(hidden_dim=16, dtype=torch.float32):
    torch.manual_seed(0)
    made = SwAV(build_backbone("resnet", **TINY), hidden_dim, embedding_dim=8, num_prototypes=6)
    replace_batch_norm(made, 1, 1, 0)
    return made.to(dtype)


def crops(views=2, size=16, seed=1):
    return torch.randn(views * BATCH, 3, size, size, generator=torch.Generator().manual_seed(seed))


def numbers(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def disturb(module, amount):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(amount * torch.arange(parameter.numel()).view_as(parameter).remainder(3))


def test_two_steps_at_momentum_one_half_give_the_average_computed_by_hand():
    student = network()
    teacher = Teacher(student, [0, 1])
    first = numbers(student)
    disturb(student, 0.1)
    second = numbers(student)
    teacher.follow(student, 0.5)
    disturb(student, -0.3)
    third = numbers(student)
    teacher.follow(student, 0.5)
    for name, average in teacher.network.named_parameters():
        if name != "prototypes.weight":
            torch.testing.assert_close(average, first[name] / 4 + second[name] / 4 + third[name] / 2)
    name = "prototypes.weight"
    half = functional.normalize(first[name] / 2 + second[name] / 2, dim=1)
    torch.testing.assert_close(
        teacher.network.prototypes.weight, functional.normalize(half / 2 + third[name] / 2, dim=1)
    )


def test_at_momentum_0_the_teacher_gives_the_students_outputs():
    """Embeddings bit for bit; scores nearly, since normalizing unit prototypes again may change their last bit."""
    student = network()
    teacher = Teacher(student, [0, 1])
    disturb(student, 0.01)
    student.prototypes.normalize()
    teacher.follow(student, 0.0)
    images, queued = [crops()], functional.normalize(torch.randn(2, 5, 8), dim=2)
    (embeddings, *scores), (its_embeddings, *its_scores) = (
        one(images, BATCH, queued)[:3] for one in (student, teacher)
    )
    assert torch.equal(embeddings, its_embeddings)
    torch.testing.assert_close([each.detach() for each in scores], its_scores, atol=1e-6, rtol=0)


def test_the_teacher_takes_no_gradient_and_gives_none():
    student = network()
    teacher = Teacher(student, [0, 1])
    _, scores, _ = teacher([crops()], BATCH)
    assert not scores.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_its_batch_norm_has_separate_statistics_and_its_dropout_is_off():
    student = network()
    student.projection_head.append(nn.Dropout(0.9))
    teacher = Teacher(student, [0, 1])
    before = student.backbone.bn1.running_mean.clone()
    teacher([crops()], BATCH)
    assert torch.equal(student.backbone.bn1.running_mean, before)
    assert not torch.equal(teacher.network.backbone.bn1.running_mean, before)
    average = teacher.network.backbone.bn1.running_mean.clone()
    teacher.follow(student, 0.5)
    assert torch.equal(teacher.network.backbone.bn1.running_mean, average)
    twice = [teacher([crops()], BATCH)[1] for _ in range(2)]
    assert torch.equal(*twice)
    assert student.training


def test_an_evaluation_leaves_each_modules_mode_and_statistics_as_they_were():
    teacher = Teacher(network(), [0, 1])
    teacher([crops()], BATCH)
    modes = [module.training for module in teacher.network.modules()]
    state = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    assert set(modes) == {True, False}
    with evaluation_mode(teacher.network):
        one = teacher.features(crops())[:2]
        two = teacher.features(crops()[:2])  # does not depend on the other images of the batch
    torch.testing.assert_close(one, two)
    assert [module.training for module in teacher.network.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in teacher.network.state_dict().items())


@pytest.mark.parametrize("assigning", [[0, 1], [1, 0], [0], [2, 0], [3, 1]])
def test_only_the_assigning_crops_are_computed_and_come_in_their_order(assigning):
    """Views 0 and 1 are of 16 pixels, 2 to 4 of 8."""
    student = network()
    teacher = Teacher(student, assigning)
    student.eval()  # a batch of other crops would have other statistics
    teacher.network.eval()
    images = [crops(2, 16), crops(3, 8, seed=2)]
    embeddings, scores, _ = teacher(images, BATCH)
    all_embeddings, all_scores, _, _ = student(images, BATCH)
    torch.testing.assert_close(scores, all_scores[assigning].detach())
    torch.testing.assert_close(embeddings, all_embeddings[assigning])
    chosen, order = only_views(images, BATCH, assigning)
    assert sum(map(len, chosen)) == BATCH * len(assigning)
    assert sorted(order) == sorted(assigning)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_average_is_float32_at_every_precision(dtype):
    """fp16's network has half parameters; bf16's are float32 under autocast."""
    student = network(dtype=torch.float16 if dtype == torch.float16 else torch.float32)
    teacher = Teacher(student, [0, 1], dtype)
    teacher.follow(student, 0.999)  # a step that float16 would round to nothing
    assert {parameter.dtype for parameter in teacher.network.parameters()} == {torch.float32}
    images = [crops().to(dtype)]
    embeddings, scores, _ = teacher(images, BATCH)
    assert embeddings.dtype == scores.dtype == torch.float32
    exact = Teacher(student, [0, 1])(([images[0].float()]), BATCH)[1]
    torch.testing.assert_close(scores, exact, atol=0.05, rtol=0)


def test_the_momentum_follows_a_cosine_from_its_first_to_its_final_value():
    assert momentum_at(0, 100, 0.996, 1.0) == pytest.approx(0.996)
    assert momentum_at(50, 100, 0.996, 1.0) == pytest.approx(0.998)
    assert momentum_at(100, 100, 0.996, 1.0) == pytest.approx(1.0)
    assert momentum_at(25, 100, 0.0, 1.0) == pytest.approx((1 - math.cos(math.pi / 4)) / 2)
    assert momentum_at(7, 100, 0.9, 0.9) == pytest.approx(0.9)

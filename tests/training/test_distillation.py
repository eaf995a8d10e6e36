"""Distillation: a trained teacher that does not move gives the codes of a smaller student."""

import json
import math
import shutil

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch.nn import functional

from config.recipe import ConfigError, load_config
from model.distillation import Centered, FrozenTeacher, HeadSizes, head_sizes
from model.loss import distillation
from model.swav import SwAV
from model.weights import published_names
from support.tiny_runs import interrupted, losses, make_workplace
from support.tiny_runs import train as run_train
from training.auto import fit
from training.build import build_network
from training.checkpoint.save_load import latest_checkpoint
from training.distillation.teacher import build_frozen_teacher
from training.distributed import Cluster

TEACHER = {"block": "basic", "layers": [1, 1], "base_width": 12, "stem": "small", "stem_stride": 2}
DIM, PROTOTYPES = 6, 10
OPTIONS = "distill.options={block: basic, layers: [1, 1], base_width: 12, stem: small, stem_stride: 2}"
SETTINGS = (
    *("method=distill", "distill.backbone=resnet", OPTIONS, "engine.sync_batch_norm=0", "swav.freeze_prototypes=auto"),
    *("run.epochs=2", "checkpoint={every: 3 steps, keep: 9}", "pipeline.backend=torchvision", "model.prototypes=auto"),
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    workplace = make_workplace(tmp_path_factory.mktemp("run"))
    model = load_config([str(workplace / "tiny.yaml"), "model.backbone=resnet"]).model
    torch.manual_seed(1)
    sizes = {"options": TEACHER, "embedding_dim": DIM, "prototypes": PROTOTYPES, "heads": 1}
    network = build_network({**model, **sizes})
    torch.save({"state_dict": published_names(network.state_dict())}, workplace / "whole.pth")
    save_file(network.backbone.state_dict(), workplace / "backbone.safetensors")
    return workplace


def train(workplace, name, *settings, ranks=1, file="whole.pth"):
    return run_train(workplace, name, *SETTINGS, f"distill.weights={workplace / file}", *settings, ranks=ranks)


def fitted(workplace, *settings, file="whole.pth"):
    words = (*SETTINGS, f"distill.weights={workplace / file}", *settings)
    config = load_config([str(workplace / "tiny.yaml"), *words])
    fit(config, 68, Cluster())
    return config


@pytest.mark.parametrize("heads", [1, 2])
def test_the_loss_is_the_mean_cross_entropy_of_every_crop_with_every_code(heads):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 3, heads * 5, generator=generator, requires_grad=True)
    codes = torch.rand(2, 3, heads, 5, generator=generator)
    codes = (codes / codes.sum(-1, keepdim=True)).flatten(2)
    loss = distillation(codes, scores, 0.2, heads)
    expected = [
        functional.cross_entropy(scores[crop].view(-1, 5) / 0.2, code.view(-1, 5))
        for code in codes
        for crop in range(4)
    ]
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    loss.backward()
    (gradient,) = torch.autograd.grad(torch.stack(expected).mean(), scores)
    torch.testing.assert_close(scores.grad, gradient)


@pytest.mark.slow
def test_a_students_first_loss_is_the_formula_in_plain_torch(workplace, one):
    """The crops of the first step go through a plain network and plain Sinkhorn-Knopp in float64."""
    from pipeline.crops import crops_from_config
    from pipeline.dataset.open import open_splits
    from training.build import build_loader, starting_network

    config = fitted(workplace)
    table, _ = open_splits(config.data, progress=False)
    crops = crops_from_config(config.crops, "torchvision")
    loader = build_loader(config, table, crops, Cluster())
    images = [crop.double() for crop in next(iter(loader)).crops]
    loader.close()
    torch.manual_seed(config.run.seed)
    student = starting_network(config.model).double()
    teacher = build_frozen_teacher(config, torch.device("cpu")).network.double()
    own = functional.normalize(student.projection_head(torch.cat([student.backbone(x) for x in images])), dim=1)
    seen = functional.normalize(teacher.projection_head(teacher.backbone(images[0])), dim=1)
    codes = (seen @ teacher.prototypes.weight.T / config.swav.epsilon).exp().view(2, 8, PROTOTYPES)
    for _ in range(config.swav.iterations):
        codes = codes / codes.sum(1, keepdim=True)
        codes = codes / codes.sum(2, keepdim=True)
    predictions = (own @ student.prototypes.weight.T / config.swav.temperature).log_softmax(1).view(4, 8, PROTOTYPES)
    expected = -torch.stack([(code * crop).sum(1).mean() for code in codes for crop in predictions]).mean()
    assert one[1] == pytest.approx(expected.item(), rel=1e-5)


@pytest.fixture(scope="module")
def one(workplace):
    """A whole run in one process."""
    output = train(workplace, "one", "run.epochs=1")
    assert "teacher" in output and "projection head and prototypes taken" in output
    return losses(workplace, "one")


@pytest.mark.slow(seconds=7)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_has_the_losses_of_one_process(workplace, one, stage):
    name = f"stage-{stage}"
    train(workplace, name, f"engine.stage={stage}", "run.epochs=1", "checkpoint.every=never", ranks=2)
    assert losses(workplace, name) == pytest.approx(one, rel=1e-3)
    assert losses(workplace, name)[1] == pytest.approx(one[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("file", "stage"), [("whole.pth", 3), ("backbone.safetensors", 1)])
def test_a_resumed_run_has_the_same_losses_and_the_teachers_prototypes(workplace, file, stage):
    settings = (f"engine.stage={stage}", "run.epochs=1", "distill.crops={count: 1, size: 16, scale: [0.5, 1.0]}")
    name, words = f"whole-{stage}", {"ranks": 2, "file": file}
    train(workplace, name, *settings, **words)
    interrupted(workplace, name, f"{name}-again", 6)
    output = train(workplace, f"{name}-again", *settings, **words)
    assert "resuming from" in output and "first embeddings" not in output
    assert losses(workplace, f"{name}-again") == losses(workplace, name)
    one, other = (latest_checkpoint(workplace / f"{name}{end}" / "checkpoints") for end in ("", "-again"))
    for path in one.glob("*.safetensors"):
        assert path.read_bytes() == (other / path.name).read_bytes()
    summaries = [json.loads((workplace / f"{name}{end}" / "summary.json").read_text()) for end in ("", "-again")]
    assert summaries[0]["knn"] == summaries[1]["knn"] and 0 < summaries[0]["knn_teacher"] <= 1


@pytest.mark.slow
def test_other_weights_of_the_teacher_are_refused_on_resume(workplace, one):
    values = torch.load(workplace / "whole.pth")["state_dict"]
    values["conv1.weight"] = values["conv1.weight"] + 0.01
    torch.save(values, workplace / "moved.pth")
    shutil.copytree(workplace / "one", workplace / "other")
    assert "other weights of the teacher" in refusal(
        workplace, "other", f"distill.weights={workplace / 'moved.pth'}", "run.epochs=2"
    )


@pytest.mark.slow
def test_it_works_in_bf16_with_a_queue_of_the_teachers_embeddings_and_a_batch_in_parts(workplace):
    settings = ("engine.precision=bf16", "engine.accumulation=2", "run.epochs=1", "swav.queue.length=16")
    train(workplace, "bf16", *settings, "checkpoint.every=never")
    assert all(map(math.isfinite, losses(workplace, "bf16").values()))
    tensors = load_file(latest_checkpoint(workplace / "bf16" / "checkpoints") / "rank-00000.safetensors")
    assert tensors["own/queue"].shape == (2, 16, DIM)
    assert tensors["own/queue"].ne(0).any(-1).all()


def refusal(workplace, name, *settings):
    words = (*SETTINGS, f"distill.weights={workplace / 'whole.pth'}", *settings)
    process = run_train(workplace, name, *words, wait=False)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    return output.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["distill.weights=null"], "distill.weights=None: expected a file with the teacher's weights"),
        (["method=swav"], "distill.weights="),
        (["swav.teacher.momentum=0.9"], "swav.teacher.momentum=0.9: expected 0 with method=distill"),
        (["model.prototypes_from=kmeans"], "model.prototypes_from=kmeans: expected auto or weights"),
        (["model.prototypes=11"], "model.prototypes=11: the teacher's file has 10; leave it out"),
        (["distill.weights=/none.pth"], "distill.weights=/none.pth: no such file or folder"),
        (["distill.options.base_width=16"], "teacher "),
    ],
)
def test_a_mistake_is_an_error_of_one_line(workplace, settings, message):
    assert refusal(workplace, "refused", *settings).startswith(f"swave: {message}")
    assert not (workplace / "refused" / "metrics.jsonl").exists()


def test_auto_takes_prototypes_and_heads_of_the_file_else_kmeans_and_keeps_them_on_resume(workplace):
    whole, alone = fitted(workplace), fitted(workplace, file="backbone.safetensors")
    assert (whole.model.prototypes, whole.model.heads, whole.distill.prototypes_from) == (PROTOTYPES, 1, "weights")
    assert (alone.model.prototypes, alone.distill.prototypes_from) == (30, "kmeans")
    with pytest.raises(ConfigError, match=r"^distill\.prototypes_from=weights: .* has no prototypes"):
        fitted(workplace, "distill.prototypes_from=weights", file="backbone.safetensors")
    again = load_config([str(workplace / "tiny.yaml"), *SETTINGS, f"distill.weights={workplace / 'whole.pth'}"])
    again.model.prototypes = "auto"
    lines = fit(again, 68, Cluster(), OmegaConf.to_container(alone))
    assert (again.model.prototypes, again.distill.prototypes_from) == (30, "kmeans")
    assert "distill.prototypes_from=kmeans  (the run has begun with it)" in lines
    assert head_sizes(torch.load(workplace / "whole.pth")["state_dict"]) == HeadSizes(16, DIM, PROTOTYPES, 1)


def test_the_teacher_neither_moves_nor_takes_a_gradient(workplace):
    teacher = build_frozen_teacher(fitted(workplace), torch.device("cpu"))
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    images = [torch.randn(16, 3, 16, 16), torch.randn(16, 3, 8, 8)]
    embeddings, scores, _ = teacher(images, 8)
    assert embeddings.shape == (2, 8, DIM) and scores.shape == (2, 8, PROTOTYPES) and not scores.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in teacher.network.state_dict().items())
    torch.testing.assert_close(
        teacher([images[0][::2]], 4)[0][0], embeddings[0, ::2]
    )  # batch norm has its own statistics


def test_a_teacher_without_a_head_scores_centered_features(workplace):
    teacher = build_frozen_teacher(fitted(workplace, file="backbone.safetensors"), torch.device("cpu"))
    assert isinstance(teacher, FrozenTeacher) and isinstance(teacher.network.projection_head, Centered)
    mean = torch.randn(24) / 9
    teacher.set_prototypes(teacher.network.prototypes.weight.clone(), mean)
    images = torch.randn(16, 3, 16, 16)
    embeddings, _, _ = teacher([images], 8)
    features = functional.normalize(teacher.features(images), dim=1) - mean
    torch.testing.assert_close(embeddings.flatten(0, 1), functional.normalize(features, dim=1))
    assert isinstance(teacher.network, SwAV)

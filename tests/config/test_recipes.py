"""Every recipe: the published figures, networks of the published size, and two scaled-down training steps."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from config.groups import groups_of
from config.recipe import ROOT, load_config
from model.clustering.deepcluster import assigned_prediction
from model.loss import distillation, swapped_prediction
from model.optimizer.build import build_optimizer, set_step
from model.optimizer.schedule import warmup_cosine
from model.sinkhorn import sinkhorn
from model.teacher import Teacher, momentum_at
from model.weights import published_names
from training.auto import fit
from training.build import build_network, build_queue, build_teacher
from training.distributed import Cluster

RECIPES = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "config").rglob("*.yaml") if p.name != "default.yaml")
IMAGENET = 1_281_167
BIG, SMALL = (4.8, 0.0048, 0.3, 10), (0.6, 0.0006, 0.0, 0)  # peak, final, start, epochs of warm-up

# name: epochs, batch, steps an epoch, learning rates, frozen steps, queue (length, from epoch), head, crops
PUBLISHED = {
    "swav_800ep": (800, 4096, 312, BIG, 313, (0, 0), 2048, (2, 6)),
    "swav_400ep": (400, 4096, 312, BIG, 313, (0, 0), 2048, (2, 6)),
    "swav_200ep": (200, 4096, 312, BIG, 313, (0, 0), 2048, (2, 6)),
    "swav_100ep": (100, 4096, 312, BIG, 313, (0, 0), 2048, (2, 6)),
    "swav_2x224": (400, 4096, 312, BIG, 313, (0, 0), 2048, (2, 0)),
    "swav_bs256_200ep": (200, 256, 5004, SMALL, 5005, (3840, 15), 2048, (2, 6)),
    "swav_bs256_400ep": (400, 256, 5004, SMALL, 5005, (3840, 15), 2048, (2, 6)),
    "swav_w2": (400, 4096, 312, BIG, 313, (0, 0), 8192, (2, 4)),
    "swav_w4": (400, 2560, 500, BIG, 313, (2560, 0), 8192, (2, 4)),
    "swav_w5": (400, 1536, 834, BIG, 313, (1536, 0), 10240, (2, 4)),
}


def fitted(recipe: str, images: int = IMAGENET, *settings: str):
    config = load_config([str(ROOT / recipe), "data.path=/images", *settings])
    fit(config, images, Cluster())
    return config


def schedule(config, steps):
    rates = config.optimizer
    return warmup_cosine(steps, config.run.epochs, rates.warmup_epochs, rates.start_lr, rates.base_lr, rates.final_lr)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_has_the_published_figures(name):
    epochs, batch, steps, (peak, final, start, warmup), frozen, queue, hidden, crops = PUBLISHED[name]
    config = fitted(f"config/imagenet/{name}.yaml")
    assert (config.run.epochs, config.run.batch_size, IMAGENET // batch) == (epochs, batch, steps)
    assert config.swav.freeze_prototypes == frozen
    assert (config.swav.queue.length, config.swav.queue.start_epoch) == queue
    assert (config.model.hidden_dim, config.model.embedding_dim, config.model.prototypes) == (hidden, 128, 3000)
    assert (config.crops["global"]["count"], config.crops.local["count"]) == crops
    assert (config.optimizer.weight_decay, config.swav.epsilon, config.swav.temperature) == (1e-6, 0.05, 0.1)
    rates = schedule(config, steps)
    assert len(rates) == epochs * steps
    assert rates[0] == (start if warmup else peak)
    assert rates[warmup * steps] == rates.max() == peak
    assert rates[-1] == pytest.approx(final, rel=1e-2) and np.all(np.diff(rates[warmup * steps :]) < 0)


@pytest.mark.parametrize("recipe", [r for r in RECIPES if "imagenet/" in r])
def test_an_imagenet_recipe_builds_the_network_that_it_names(recipe):
    config = fitted(recipe)
    with torch.device("meta"):
        network = build_network(config.model)
    backbone = sum(p.numel() for p in network.backbone.parameters())
    millions = {"resnet50": 23.5, "resnet50w2": 93.9, "resnet50w4": 375.4, "resnet50w5": 586.5}
    millions |= {"vit_small_patch16_224": 21.7, "vit_base_patch16_224": 85.8}
    assert backbone / 1e6 == pytest.approx(millions[config.model.backbone], abs=0.1)
    assert network.prototypes.weight.shape == (3000 * config.model.heads, 128)
    assert config.model.heads == (1 if config.method == "swav" else 3)


# crops, epochs and the linear figure of the published scripts of DeepCluster-v2; SeLa-v2 has none
CLUSTERING = {
    "deepclusterv2_800ep": (800, "75.2", (2, 224, [0.14, 1.0]), (6, 96, [0.05, 0.14])),
    "deepclusterv2_400ep": (400, "74.3", (2, 160, [0.08, 1.0]), (4, 96, [0.05, 0.14])),
    "deepclusterv2_2x224": (400, "70.2", (2, 224, [0.08, 1.0]), (0, 96, [0.05, 0.14])),
    "selav2_400ep": (400, "71.8", (2, 160, [0.08, 1.0]), (4, 96, [0.05, 0.14])),
}


@pytest.mark.parametrize("name", CLUSTERING)
def test_a_recipe_of_a_method_that_clusters_has_the_published_figures(name):
    epochs, linear, *crops = CLUSTERING[name]
    config = fitted(f"config/imagenet/{name}.yaml")
    assert config.method == name.partition("_")[0]
    assert f"linear {linear} %" in (ROOT / f"config/imagenet/{name}.yaml").read_text()
    assert (config.run.epochs, config.run.batch_size, config.model.prototypes) == (epochs, 4096, 3000)
    groups = [config.crops[group] for group in ("global", "local")]
    assert [(group["count"], group["size"], list(group["scale"])) for group in groups] == crops
    assert (config.engine.precision, config.swav.temperature, config.swav.queue.length) == ("fp32", 0.1, 0)
    assert config.optimizer.weight_decay == 1e-6
    rates = schedule(config, 312)
    assert rates[0] == 0.3 and rates.max() == 4.8 and rates[-1] == pytest.approx(0.0048, rel=1e-2)


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_steps_of_every_recipe_scaled_down(recipe, tmp_path):
    """With the recipe's crop counts, epsilon, optimizer, queue and schedule, on small images and a narrow network."""
    shorter = ["run.batch_size=8", "run.epochs=2", "optimizer.warmup_epochs=1", "swav.queue.start_epoch=0"]
    config = load_config([str(ROOT / recipe), "data.path=/images", *shorter])
    vit = config.model.backbone.startswith("vit")
    tiny = {"block": "basic", "layers": [1, 1], "base_width": 8, "stem": "small", "stem_stride": 2}
    config.model.merge_with({"hidden_dim": 16, "embedding_dim": 8, "prototypes": 6})
    config.model.backbone = "vit_tiny_patch16_224" if vit else "resnet"
    config.model.options = {"embed_dim": 24, "depth": 2, "num_heads": 2} if vit else tiny
    queues = config.method in ("swav", "distill")
    config.swav.queue.length = 16 if config.swav.queue.length and queues else 0
    if config.method == "distill":
        wider = {**tiny, "base_width": 12}
        trained = build_network({**config.model, "options": wider, "embedding_dim": 10, "heads": 1})
        torch.save({"state_dict": published_names(trained.state_dict())}, tmp_path / "teacher.pth")
        config.distill.backbone, config.distill.options = "resnet", wider
        config.distill.weights, config.model.prototypes = str(tmp_path / "teacher.pth"), "auto"
    fit(config, 64, Cluster())
    torch.manual_seed(0)
    sizes = [32, 16] if vit else [16, 8]
    counts = Counter[int]()
    for group in groups_of(config.crops):
        counts[group["size"]] += group["count"]
    crops = [torch.randn(n * 8, 3, size, size) for n, size in zip(counts.values(), sizes, strict=False)]
    network, assigning = build_network(config.model), list(config.swav.assigning)
    optimizer, rates = build_optimizer(config.optimizer, network), schedule(config, 8)
    teacher = build_teacher(config, network, Cluster())
    queue = build_queue(config, Cluster(), teacher)
    before = network.prototypes.weight.detach().clone()
    for step, frozen in enumerate((True, False)):
        set_step(optimizer, rates[step + 4], frozen_prototypes=frozen)
        embeddings, scores, _, _ = network(crops, 8, None)
        if config.method == "distill":
            embeddings, inputs, _ = teacher(crops, 8)
            codes = sinkhorn(inputs, config.swav.epsilon, config.swav.iterations)
            loss = distillation(codes, scores, config.swav.temperature, config.model.heads)
        elif config.method == "swav":
            inputs = scores[assigning].detach() if teacher is None else teacher(crops, 8)[1]
            codes = sinkhorn(inputs, config.swav.epsilon, config.swav.iterations)
            loss = swapped_prediction(codes, scores, assigning, config.swav.temperature)
        else:
            loss = assigned_prediction(torch.randint(6, (3, 8)), scores, config.swav.temperature)
        if queue is not None:
            queue.push(embeddings[assigning])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if isinstance(teacher, Teacher):
            teacher.follow(network, momentum_at(step, 16, *config.swav.teacher.values()))
        assert torch.isfinite(loss)
        assert torch.equal(before, network.prototypes.weight) == frozen
    assert queue is None or queue.full


def test_the_learning_rate_scales_with_the_batch_when_asked():
    asked = fitted("config/imagenet/vit_s16.yaml")
    assert asked.optimizer.base_lr == pytest.approx(2e-3) and asked.optimizer.final_lr == pytest.approx(1e-6)
    rate = asked.optimizer.base_lr
    fit(asked, IMAGENET, Cluster())
    assert asked.optimizer.base_lr == rate  # once only
    assert fitted("config/imagenet/swav_800ep.yaml", IMAGENET, "run.batch_size=2048").optimizer.base_lr == 4.8


def test_every_recipe_names_a_result_and_its_command():
    for recipe in RECIPES:
        head = [line for line in Path(ROOT / recipe).read_text().splitlines() if line.startswith("#")]
        assert any(f"make train CONFIG={recipe}" in line or line == "#   make train" for line in head), recipe
        assert any(word in " ".join(head) for word in ("Published", "published", "beat", "Result", "result")), recipe
        assert OmegaConf.load(ROOT / recipe).run.directory.startswith("runs/")

"""A network that timm builds for one image size: training on crops of two others, resuming, export."""

import pytest
import torch

from evaluation.backbones import open_backbone
from export.__main__ import export
from support.tiny_runs import kill, losses, make_workplace, train, wait_for_step
from training.trained_network import read_trained

MODEL = "  backbone: convit_tiny\n  options: {embed_dim: 8, depth: 1, num_heads: 2, local_up_to_layer: 1}\n"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    root = make_workplace(tmp_path_factory.mktemp("sizes"))
    recipe = (root / "tiny.yaml").read_text()
    start, end = recipe.index("  backbone:"), recipe.index("  hidden_dim:")
    recipe = recipe[:start] + MODEL + recipe[end:]
    for old, new in (("count: 2, size: 16", "count: 2, size: 32"), ("count: 2, size: 8", "count: 2, size: 16")):
        assert old in recipe
        recipe = recipe.replace(old, new)
    (root / "tiny.yaml").write_text(recipe.replace("evaluation: {size: 16", "evaluation: {every: 1, size: 32"))
    return root


@pytest.mark.slow(seconds=30)
def test_it_trains_is_scored_resumes_and_is_exported(workplace):
    output = train(workplace, "whole", "run.epochs=2")
    assert "k-NN" in output
    process = train(workplace, "killed", "run.epochs=2", wait=False)
    wait_for_step(workplace, "killed", 10, process)
    kill(process)
    train(workplace, "killed", "run.epochs=2")
    assert losses(workplace, "killed") == losses(workplace, "whole") and len(losses(workplace, "whole")) == 16

    trained = read_trained(workplace / "whole").network.backbone
    assert trained.pos_embed.shape == (1, 14 * 14, trained.feature_dim)
    export(workplace / "whole", workplace / "model", "safetensors")
    for word in (workplace / "whole", workplace / "model"):
        again = open_backbone(str(word)).network
        for size in (32, 16, 224):
            images = torch.randn(2, 3, size, size)
            with torch.no_grad():
                assert torch.equal(again(images), trained(images)), (word, size)

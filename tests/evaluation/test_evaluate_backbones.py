"""One word opens a backbone, and features are cached on disk."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from config.recipe import ROOT
from evaluation.backbones import feature_function, open_backbone, open_backbones, weights_digest
from evaluation.feature_cache import cached_features, part_size
from evaluation.session import Session
from evaluation.subsets import listed_rows, share_of_each_class, take
from export.__main__ import export
from model.backbone import build_backbone
from pipeline.crops import Crops, View
from pipeline.dataset.open import open_dataset
from pipeline.dataset.table import DatasetError
from support.evaluations import (
    PUBLISHED,
    RESNET,
    evaluate,
    mistake,
    published_file,
    published_network,
    script,
    small_dataset,
)
from training.distributed import Cluster


@pytest.fixture
def options(tmp_path, data):
    """Arguments of every call: a separate cache, the torchvision backend (no warm-up), a result file."""
    return [
        "--tables", tmp_path / "tables", "--cache", tmp_path / "features", "--backend", "torchvision",
        "--json", tmp_path / "result.json",
    ]  # fmt: skip


@torch.no_grad()
def features_of(network, size=32):
    return network(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3)))


# ---------------------------------------------------------------------------------------------- one word
def test_a_published_checkpoint_gives_its_own_networks_features_and_prototypes(tmp_path):
    network = published_network()
    backbone = open_backbone(str(published_file(tmp_path / "swav.pth.tar", network)))
    torch.testing.assert_close(features_of(backbone.network), features_of(network.backbone))
    assert backbone.swav is not None and backbone.swav.prototypes.weight.shape == (20, 8)
    assert backbone.feature_dim == 512
    assert backbone.inputs.std == (0.228, 0.224, 0.225)


def test_the_widths_of_the_published_family_are_read_from_their_shapes(tmp_path):
    for name in ("resnet50", "resnet50w2", "resnet18"):
        with torch.device("meta"):
            backbone = build_backbone(name)
        from model.weights.guess import resnet_name, resnet_options

        options = resnet_options(backbone.state_dict())
        assert resnet_name(options) == name
        with torch.device("meta"):
            again = build_backbone("resnet", **options)
        assert {k: v.shape for k, v in again.state_dict().items()} == {
            k: v.shape for k, v in backbone.state_dict().items()
        }


def test_a_run_its_checkpoint_and_its_exports_are_one_backbone(tmp_path, run):
    checkpoint = next((run / "checkpoints").glob("step-*"))
    export(run, tmp_path / "export", "safetensors")
    export(run, tmp_path / "plain.pth", "swav")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {{backbone: resnet, options: {RESNET}}}\nevaluation: {{size: 16}}\n".replace("'", ""))
    words = [
        run,
        checkpoint,
        tmp_path / "export",
        tmp_path / "export" / "model.safetensors",
        f"{tmp_path}/plain.pth@{recipe}",
    ]
    backbones = [open_backbone(str(word)) for word in words]
    assert len({one.weights for one in backbones}) == 1
    assert backbones[0].inputs == backbones[2].inputs
    assert backbones[0].inputs.size == 16
    assert backbones[0].swav is not None and backbones[0].data is not None


def test_torchvision_and_timm_files_load_without_their_classifier(tmp_path):
    import timm
    import torchvision

    torch.manual_seed(0)
    resnet = torchvision.models.resnet18().eval()
    torch.save(resnet.state_dict(), tmp_path / "resnet18.pth")
    ours = open_backbone(f"{tmp_path}/resnet18.pth")
    theirs = open_backbone(f"{tmp_path}/resnet18.pth@torchvision:resnet18")
    assert ours.architecture == "resnet18"
    torch.testing.assert_close(features_of(ours.network, 64), features_of(theirs.network, 64), rtol=1e-4, atol=1e-4)
    resnet.fc = torch.nn.Identity()
    torch.testing.assert_close(features_of(theirs.network, 64), features_of(resnet, 64))
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=10).eval()
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    backbone = open_backbone(f"{tmp_path}/vit.pth@timm:vit_tiny_patch16_224")
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = vit.forward_head(vit.forward_features(images), pre_logits=True)
        torch.testing.assert_close(backbone.network(images), expected)
    with pytest.raises(ValueError, match=r"12 blocks, width 192.*name the network: .*@timm:vit_tiny_patch16_224"):
        open_backbone(f"{tmp_path}/vit.pth")


def test_weights_of_another_network_are_a_short_line_that_says_what_they_are(tmp_path):
    path = published_file(tmp_path / "swav.pth", published_network())
    with pytest.raises(
        ValueError, match=r"hold a resnet bottleneck 1-1-1-1, width 16, .*missing \(layer1\.1"
    ) as caught:
        open_backbone(f"{path}@resnet50")
    assert "of another shape" in str(caught.value) and len(str(caught.value)) < 300 + len(str(path))
    weights = torch.load(path, weights_only=True)["state_dict"]
    torch.save({key: value for key, value in weights.items() if "layer4.0.bn2" not in key}, path)
    with pytest.raises(ValueError, match=r"4 missing \(layer4\.0\.bn2\.weight"):
        open_backbone(str(path))


def test_the_word_random_has_the_first_backbones_network_and_other_weights(tmp_path):
    first, other = open_backbones([str(published_file(tmp_path / "swav.pth", published_network())), "random"])
    assert other.architecture == first.architecture
    assert other.weights != first.weights
    again = open_backbones([str(tmp_path / "swav.pth"), "random"])[1]
    assert again.weights == other.weights
    assert open_backbones([str(tmp_path / "swav.pth"), "random"], seed=4)[1].weights != other.weights
    with pytest.raises(ValueError, match="needs a backbone before it"):
        open_backbones(["random"])


def test_an_unknown_name_of_a_library_is_an_error_with_the_nearest_names():
    with pytest.raises(ValueError, match=r"^timm:restnet50: backbone 'restnet50' is neither .*nearest: .*resnet50"):
        open_backbone("timm:restnet50")


def test_the_digest_sees_every_bit():
    network = torch.nn.Linear(3, 2)
    before = weights_digest(network)
    with torch.no_grad():
        network.bias[1] = torch.nextafter(network.bias[1], torch.tensor(9.0))
    assert weights_digest(network) != before


def test_a_stages_output_is_pooled_as_asked(tmp_path):
    backbone = open_backbone(str(published_file(tmp_path / "swav.pth", published_network())))
    images = torch.randn(2, 3, 224, 224)
    network = backbone.network
    with torch.no_grad():
        last = feature_function(backbone, network)(images)
        torch.testing.assert_close(feature_function(backbone, network, "layer4")(images), last)
        windows = feature_function(backbone, network, None, pool=6)(images)  # 2 x 2 windows of a 7 x 7 map
        assert windows.shape == (2, 4 * last.shape[1])
        assert feature_function(backbone, network, "layer2")(images).shape == (2, 128)
        with pytest.raises(ValueError, match="--pool=8: the map has 7 x 7 pixels"):
            feature_function(backbone, network, None, pool=8)(images)
    with pytest.raises(ValueError, match=r"--stage=layer9: .* has conv1"):
        feature_function(backbone, network, "layer9")


# ---------------------------------------------------------------------------------------------- the cache
def session_of(cache, batch=16):
    return Session(Cluster(), torch.device("cpu"), "torchvision", 1, batch, False, cache, 0)


def test_features_are_computed_once_and_only_a_lost_part_again(tmp_path, monkeypatch):
    from evaluation import feature_cache as cache

    table = open_dataset(small_dataset(tmp_path / "d", 90, 3) / "train", tmp_path / "t", workers=1, progress=False)
    monkeypatch.setattr(cache, "SMALLEST", 25)
    rows, crops = table.usable(), Crops((View(8, (1.0, 1.0)),)).for_evaluation(8, 1.0)
    assert part_size(len(rows)) == 25
    seen = []

    def function(images):
        seen.append(len(images))
        return images.mean((2, 3))

    def extract():
        seen.clear()
        return cached_features(function, {"backbone": "a/b c"}, table, rows, crops, session_of(tmp_path / "f")), sum(
            seen
        )

    first, images = extract()
    assert images == 90
    again, images = extract()
    assert images == 0
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    (folder,) = (tmp_path / "f").iterdir()
    assert folder.name.startswith("a-b-c-")
    parts = sorted(path.name for path in folder.glob("part-*.npz"))
    assert parts == [f"part-{i:05d}.npz" for i in range(4)]
    (folder / parts[1]).unlink()
    damaged = bytearray((folder / parts[3]).read_bytes())
    damaged[len(damaged) // 2] ^= 16
    (folder / parts[3]).write_bytes(damaged)
    restored, images = extract()
    assert images == 25 + 15
    torch.testing.assert_close(first, restored, rtol=0, atol=0)
    other = cached_features(function, {"backbone": "other"}, table, rows, crops, session_of(tmp_path / "f"))
    torch.testing.assert_close(first, other, rtol=0, atol=0)
    assert len(list((tmp_path / "f").iterdir())) == 2


@pytest.mark.slow
def test_two_processes_give_the_table_of_one(tmp_path, run, data, capsys, options):
    one = evaluate(capsys, run, data, *options)
    (tmp_path / "two").mkdir()
    command = script("knn", run, data, "--tables", tmp_path / "tables", "--cache", tmp_path / "two" / "f")
    command = [*command, "--backend", "torchvision", "--json", str(tmp_path / "two.json")]
    command[:1] = [str(ROOT / ".venv/bin/torchrun"), "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env={**os.environ})
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two.json").read_text())
    assert two["results"][0]["k-NN top1"] == one["results"][0]["k-NN top1"]


# ---------------------------------------------------------------------------------------------- k-NN
def test_knn_of_evaluate_agrees_with_scikit_learn_on_the_cached_features(tmp_path, run, data, capsys, options):
    output = evaluate(capsys, run, data, "--k", "1,5,20", "--peers", "random", *options)
    assert [result["backbone"] for result in output["results"]] == [str(run), "random"]
    assert "k=20" in output["text"]
    folders = [path.parent for path in (tmp_path / "features").glob("*/about.json")]
    own = [folder for folder in folders if json.loads((folder / "about.json").read_text())["backbone"] == str(run)]
    parts = [np.load(path)["features"] for folder in own for path in folder.glob("part-*.npz")]
    test, train = sorted(parts, key=len)
    assert (len(train), len(test)) == (90, 30)
    labels = {
        split: open_dataset(data / split, tmp_path / "x", workers=1, progress=False).label for split in ("train", "val")
    }
    for k in (1, 5, 20):
        theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
        accuracy = theirs.fit(train, labels["train"]).score(test, labels["val"])
        assert output["results"][0]["k-NN top1"][f"k={k}"] == pytest.approx(accuracy)


def test_a_published_checkpoint_is_evaluated(tmp_path, data, capsys, options):
    path = published_file(tmp_path / "swav_pretrain.pth.tar", published_network())
    output = evaluate(capsys, path, data, "--size", 32, "--k", "5", *options)
    assert 0 <= output["results"][0]["k-NN top1"]["k=5"] <= 1
    accounts = output["data"].pop("accounting")
    assert {split: account["images"] for split, account in accounts.items()} == {"train": 90, "test": 30}
    assert output["data"] == {"path": str(data), "train_images": 90, "test_images": 30, "classes": 3}


def test_file_lists_choose_the_images(tmp_path, run, data, capsys, options):
    names = [f"class{i % 3}/{i:05d}.png" for i in range(12)]
    (tmp_path / "list").write_text("\n".join(names))
    output = evaluate(capsys, run, data, "--train-list", tmp_path / "list", "--k", "1", *options)
    assert output["data"]["train_images"] == 12
    (tmp_path / "bad").write_text("class0/00000.png\nnone.png\n")
    assert "none.png is not one of the 90 images" in mistake(
        capsys, run, data, "--train-list", tmp_path / "bad", *options
    )


def test_lists_take_paths_names_and_stems_and_refuse_duplicates(tmp_path):
    table = open_dataset(small_dataset(tmp_path / "d", 9, 3) / "train", tmp_path / "t", workers=1, progress=False)
    (tmp_path / "l").write_text("class1/00004.png 1\n00000.png\n./class2/00008.png\n00003\n")
    rows = listed_rows(table, tmp_path / "l", "--train-list")
    assert [table.name(row) for row in rows] == [f"class{i % 3}/{i:05d}.png" for i in (4, 0, 8, 3)]
    assert [take(table, rows).name(i) for i in range(4)] == [table.name(row) for row in rows]
    (tmp_path / "l").write_text("00000.png\nclass0/00000.png\n")
    with pytest.raises(DatasetError, match="names an image twice"):
        listed_rows(table, tmp_path / "l", "--train-list")


def test_a_listed_name_may_have_blanks(tmp_path):
    folder = small_dataset(tmp_path / "d", 3, 1) / "train/class0"
    for name in ("my photo.png", "my photo 2.png"):
        shutil.copy(folder / "00000.png", folder / name)
    table = open_dataset(folder.parent, tmp_path / "t", workers=1, progress=False)
    (tmp_path / "l").write_text("\ufeffclass0/my photo.png 1\r\n00000.png 0\r\nmy photo 2.png\n")  # of Windows
    rows = listed_rows(table, tmp_path / "l", "--train-list")
    expected = ["class0/my photo.png", "class0/00000.png", "class0/my photo 2.png"]
    assert [table.name(row) for row in rows] == expected


def test_a_files_folder_and_the_recipe_after_it_may_have_an_at_sign(tmp_path):
    folder = tmp_path / "me@host"
    folder.mkdir()
    published_file(folder / "swav.pth", published_network())
    recipe = folder / "recipe.yaml"
    recipe.write_text(f"model: {{backbone: resnet, options: {PUBLISHED}}}\n".replace("'", ""))
    expected = open_backbone(f"{folder}/swav.pth").weights
    assert open_backbone(f"{folder}/swav.pth@{recipe}").weights == expected


def test_a_share_of_each_class_is_the_same_everywhere_and_grows():
    label = np.repeat([0, 1, 2], [100, 1000, 7])
    one, ten = share_of_each_class(label, 0.01, 5), share_of_each_class(label, 0.1, 5)
    assert np.bincount(label[one]).tolist() == [1, 10, 1]
    assert np.bincount(label[ten]).tolist() == [10, 100, 1]
    assert set(one) <= set(ten)
    assert set(share_of_each_class(label, 0.1, 6)) != set(ten)


# ---------------------------------------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere", "{data}"], "backbone nowhere: no such run or file"),
        (["{run}", "/none"], "DATA=/none: "),
        (["{run}", "{data}", "--k", "5,x"], "--k=5,x: expected different integers"),
        (["{run}", "{data}", "--share", "2"], "--share=2.0: expected"),
        (["{run}", "{data}", "--backend", "pil"], "--backend=pil: expected dali"),
        (["{run}", "{data}", "--stage", "layer7"], "--stage=layer7: "),
        (["{run}", "{data}", "--json", "/none/x.json"], "--json=/none/x.json: its folder does not exist"),
        (["{run}", "{data}", "--wrong"], "unrecognized arguments"),
        (["random@nothing", "{data}"], "network 'nothing' is unknown"),
        (["timm:nothing", "{data}"], "timm:nothing: backbone 'nothing' is neither one of swave's nor a model of timm"),
    ],
)
def test_mistakes_are_one_line(tmp_path, run, data, capsys, arguments, message):
    words = [word.format(run=run, data=data) for word in arguments]
    line = mistake(capsys, *words, "--tables", tmp_path / "t", "--cache", "none", "--threads", 1)
    assert message in line


def test_the_script_suggests_a_command_and_prints_its_help():
    done = subprocess.run(script("knm", "x"), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, "swave: 'knm' is not a command of evaluate.py; perhaps knn\n")
    helped = subprocess.run(script("--help"), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert helped.returncode == 0
    assert "knn" in helped.stdout


def test_each_evaluation_says_what_its_figure_leaves_out(tmp_path, run, options, capsys):
    data = small_dataset(tmp_path / "d", 30, 12)
    for path in sorted((data / "val").rglob("*.png"))[::2]:
        path.write_bytes(path.read_bytes()[:60])
    for _ in range(2):
        result = evaluate(capsys, run, data, *options)
        assert result["data"]["accounting"]["test"]["quarantined"] == {"truncated": 6}
        assert result["data"]["test_images"] == 6
        line = (
            "test images: 6 images, 6 labeled (3 classes); left out: nothing; 6 of 12 images quarantined (6 truncated)"
        )
        assert line in result["text"].splitlines()

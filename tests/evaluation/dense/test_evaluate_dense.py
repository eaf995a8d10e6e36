"""Classes of pixels: against scikit-learn's arithmetic, on scikit-image's own masks pasted on photographs."""

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix, jaccard_score
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from evaluation.dense import linear, propagation
from evaluation.dense.confusion import IGNORED, confusion
from evaluation.dense.confusion import scores as confusion_scores
from evaluation.dense.linear import augmented
from evaluation.dense.maps import last_stage, map_function
from evaluation.dense.masks import open_masked
from evaluation.dense.propagation import patch_labels, propagate
from evaluation.dense.windows import sliding_logits, starts
from evaluation.session import Session
from model.backbone import build_backbone
from pipeline.crops import Crops, View
from pipeline.dataset.table import DatasetError
from support.evaluations import evaluate, mistake
from support.photos import photographs
from training.distributed import Cluster

SIDE = 64


def cut_outs():
    """(RGB, alpha) of scikit-image's logo, whose alpha channel is its mask, and of the silhouette of its horse."""
    logo = Image.fromarray(skimage.data.logo()).resize((40, 40))
    horse = Image.fromarray((~skimage.data.horse()).astype(np.uint8) * 255).resize((48, 40))
    color = Image.new("RGB", horse.size, (230, 200, 30))
    return [(logo.convert("RGB"), logo.getchannel("A")), (color, horse)]


def pictures(count, seed):
    """Images of SIDE pixels and their masks: 0 photograph, 1 logo, 2 horse; the edge of a cut-out is ignored."""
    random = np.random.default_rng(seed)
    grounds = [Image.fromarray(photo).convert("L").convert("RGB") for photo in photographs()]
    for index in range(count):
        ground = grounds[index % len(grounds)]
        left, top = (int(random.integers(0, length - 160)) for length in ground.size)
        image = ground.crop((left, top, left + 160, top + 160)).resize((SIDE, SIDE))
        mask = np.zeros((SIDE, SIDE), np.uint8)
        colors, alpha = cut_outs()[index % 2]
        at = (int(random.integers(0, SIDE - alpha.width)), int(random.integers(0, SIDE - alpha.height)))
        image.paste(colors, at, alpha)
        opaque = np.array(alpha)
        part = mask[at[1] : at[1] + alpha.height, at[0] : at[0] + alpha.width]
        part[opaque > 200] = 1 + index % 2
        part[(opaque > 50) & (opaque <= 200)] = IGNORED
        yield image, mask


def voc(root, train=12, test=6):
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    for split, count, seed in (("train", train, 0), ("val", test, 1)):
        names = [f"{split}{index}" for index in range(count)]
        for name, (image, mask) in zip(names, pictures(count, seed), strict=True):
            image.save(root / "JPEGImages" / f"{name}.jpg", quality=95)
            palette = Image.fromarray(mask, "P")
            palette.putpalette(list(range(256)) * 3)
            palette.save(root / "SegmentationClass" / f"{name}.png")
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    return voc(tmp_path_factory.mktemp("voc") / "VOC")


def arguments(root, *more):
    return [*more, "--classes", 3, "--size", 48, "--cache", "none", "--json", root / "r.json", "--threads", 1]


def random_pixels(classes=5, count=4000):
    random = np.random.default_rng(0)
    expected = random.integers(0, classes - 1, count).astype(np.uint8)
    predicted = np.where(random.random(count) < 0.6, expected, random.integers(0, classes - 1, count))
    return np.where(random.random(count) < 0.1, IGNORED, expected).reshape(40, -1), predicted.reshape(40, -1)


def test_confusion_and_iou_are_scikit_learns():
    expected, predicted = random_pixels()
    counted = expected != IGNORED
    theirs = confusion_matrix(expected[counted], predicted[counted], labels=range(5))
    ours = confusion(expected, predicted, 5)
    assert (ours == theirs).all()
    each = jaccard_score(expected[counted], predicted[counted], labels=range(4), average=None)
    figures = confusion_scores(ours)
    assert [one["IoU"] for one in figures["classes"]] == pytest.approx(each.tolist())
    assert figures["mIoU"] == pytest.approx(each.mean()), "the fifth class does not occur and does not count"
    assert figures["pixel accuracy"] == pytest.approx((expected[counted] == predicted[counted]).mean())


def test_windows_cover_every_pixel_and_a_function_of_single_pixels_is_unchanged():
    for length in (10, 11, 17, 30):
        covered = np.zeros(length)
        for start in starts(length, 10, 6):
            assert start + 10 <= length
            covered[start : start + 10] += 1
        assert (covered > 0).all()
    image = torch.randn(3, 25, 17, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(sliding_logits(lambda windows: windows[:, :2] * 3, image, 10, 6, batch=3), image[:2] * 3)


def test_overlapping_windows_are_averaged():
    """A function that gives each window the number of its call: pixels in two windows have the mean."""
    calls = iter(range(10))
    logits = sliding_logits(
        lambda w: torch.full((1, 1, *w.shape[2:]), float(next(calls))), torch.zeros(3, 4, 6), 4, 2, 1
    )
    assert logits[0, 0].tolist() == [0, 0, 0.5, 0.5, 1, 1]


def test_masks_of_both_layouts_are_read(masks, tmp_path):
    data = open_masked(masks, 3)
    image, mask = data.read(data.train[1])
    assert image.size == (SIDE, SIDE) and set(np.unique(mask)) <= {0, 2, IGNORED} and (mask == 2).any()
    for split, ade in (("train", "training"), ("val", "validation")):
        for folder in ("images", "annotations"):
            (tmp_path / folder / ade).mkdir(parents=True)
        for pixels, values in (getattr(data, "train" if split == "train" else "test"))[:2]:
            (tmp_path / "images" / ade / pixels.name).write_bytes(pixels.read_bytes())
            counted = np.array(Image.open(values))
            shifted = np.where(counted == IGNORED, 0, counted + 1).astype(np.uint8)  # 0 is "other" there
            Image.fromarray(shifted).save(tmp_path / "annotations" / ade / values.name)
    ade = open_masked(tmp_path)
    assert ade.classes == 150 and len(ade.train) == len(ade.test) == 2
    first, second = sorted(data.train[:2])
    assert [
        (ade.read(pair)[1] == data.read(own)[1]).all() for pair, own in zip(ade.train, (first, second), strict=True)
    ]
    assert np.array_equal(ade.read(ade.train[0])[1], data.read(first)[1])


def test_crop_and_mask_stay_together_and_what_is_beyond_the_image_is_ignored():
    """An image whose red channel is its mask's class: after scaling, cropping and flipping it still is."""
    mask = np.kron(np.arange(4, dtype=np.uint8).reshape(2, 2), np.ones((32, 32), np.uint8))
    image = Image.fromarray(np.stack([mask * 60] * 3, axis=2))
    crops, random = Crops((View(48, (1.0, 1.0)),), mean=(0, 0, 0), std=(1, 1, 1)), np.random.default_rng(0)
    ignored = 0
    for _ in range(40):
        pixels, labels = augmented(image, mask, 48, crops, random)
        assert pixels.shape == (3, 48, 48) and labels.shape == (48, 48)
        known, drawn = labels != IGNORED, torch.round(pixels[0] * 255 / 60).long()
        assert float((drawn[known] == labels[known]).float().mean()) > 0.93, "but for blurred borders"
        assert (pixels[:, ~known] == 0).all()
        ignored += int((~known).any())
    assert 5 < ignored < 35, "scales below 1 leave room, those above do not"


def test_patch_labels_are_the_shares_of_pixels():
    mask = np.array([[0, 0, 1, 1], [0, 2, IGNORED, 1], [IGNORED] * 4, [IGNORED] * 4], np.uint8)
    shares = patch_labels(mask, 2, 2, 3)
    expected = [[0.75, 0, 0.25], [0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert torch.allclose(shares, torch.tensor(expected))


def test_propagated_labels_are_scikit_learns_weighted_neighbors():
    random = np.random.default_rng(0)
    bank, queries = (random.normal(size=(count, 6)) for count in (300, 50))
    bank, queries = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (bank, queries))
    label = random.integers(0, 4, 300)
    # on unit length the cosine is 1 - distance^2 / 2
    theirs = KNeighborsClassifier(7, weights=lambda distance: np.exp((1 - distance**2 / 2) / 0.1)).fit(bank, label)
    ours = propagate(torch.from_numpy(bank), torch.eye(4).double()[label], torch.from_numpy(queries), 7, 0.1)
    np.testing.assert_allclose(ours.numpy(), theirs.predict_proba(queries), atol=1e-6)


SESSION = Session(Cluster(), torch.device("cpu"), "torchvision", 1, 4, False, None, 0)
PIXELS = Crops((View(SIDE, (1.0, 1.0)),), mean=(0, 0, 0), std=(1, 1, 1))


def scikit_learns_iou(data, predicted):
    masks = np.stack([data.read(pair)[1] for pair in data.test])
    counted = masks != IGNORED
    return jaccard_score(masks[counted], np.stack(predicted)[counted], average=None)


def test_the_score_of_a_segmentation_is_scikit_learns(masks):
    """Logits that are a function of a pixel's color, so that a plain loop predicts the same."""
    data = open_masked(masks, 3)
    centers = torch.tensor([0.4, 0.1, 0.9])

    def logits(images):
        return -(images[:, :1] - centers[:, None, None]).square()

    predicted = [np.abs(np.array(data.read(pair)[0])[..., :1] / 255 - centers.numpy()).argmin(2) for pair in data.test]
    figures = confusion_scores(linear.score(logits, data, PIXELS, SESSION, "test"))
    assert [one["IoU"] for one in figures["classes"]] == pytest.approx(scikit_learns_iou(data, predicted))


def test_the_score_of_carried_labels_is_scikit_learns(masks):
    """Mean colors of 8 x 8 pixels as features; scikit-learn's weighted neighbors carry the shares of the classes."""
    data = open_masked(masks, 3)

    def maps(images):
        return torch.nn.functional.avg_pool2d(images, 8) - 0.4

    def patches(pair):
        image, mask = data.read(pair)
        means = np.array(image).reshape(8, 8, 8, 8, 3).mean((1, 3)).reshape(64, 3) / 255 - 0.4
        pieces = mask.reshape(8, 8, 8, 8).swapaxes(1, 2).reshape(64, 64)
        counts = np.stack([(pieces == one).sum(1) for one in range(3)], axis=1)
        return means / np.linalg.norm(means, axis=1, keepdims=True), counts

    features, counts = map(np.concatenate, zip(*map(patches, data.train), strict=True))
    known = counts.sum(1) > 0
    shares = counts[known] / counts[known].sum(1, keepdims=True)
    theirs = KNeighborsRegressor(5, weights=lambda distance: np.exp((1 - distance**2 / 2) / 0.1))
    theirs.fit(features[known], shares)
    predicted = []
    for pair in data.test:
        small = torch.from_numpy(theirs.predict(patches(pair)[0]).T.reshape(1, 3, 8, 8))
        predicted.append(torch.nn.functional.interpolate(small, (SIDE, SIDE), mode="bilinear")[0].argmax(0).numpy())
    bank, labels = propagation.memory(maps, data, PIXELS, 10**6, SESSION, "memory")
    matrix = propagation.score(maps, bank, labels, data, PIXELS, 5, 0.1, SESSION, "test")
    figures = confusion_scores(matrix)
    assert len(bank) == known.sum()
    assert [one["IoU"] for one in figures["classes"]] == pytest.approx(scikit_learns_iou(data, predicted), abs=2e-3)


def test_maps_of_resnets_and_vision_transformers():
    resnet = build_backbone("resnet", block="basic", layers=[1, 1], base_width=8, stem="small", stem_stride=2).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    maps = map_function(resnet, None, torch.no_grad)(images)
    assert last_stage(resnet) == "layer2" and maps.ndim == 4
    assert torch.allclose(maps.mean((2, 3)), resnet(images).flatten(1), atol=1e-5), "its mean is the feature"
    import timm

    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, depth=1, embed_dim=24, num_heads=2, num_classes=0
    ).eval()
    tokens = vit.forward_features(torch.zeros(1, 3, 64, 64))[:, 1:]
    maps = map_function(vit, None, torch.no_grad)(torch.zeros(1, 3, 64, 64))
    assert maps.shape == (1, 24, 4, 4)
    assert torch.allclose(maps[0, :, 1, 2], tokens[0, 4 + 2], atol=1e-5), "row by row, without the class token"
    with pytest.raises(ValueError, match="the network has"):
        map_function(resnet, "layer9", torch.no_grad)


def test_a_linear_layer_learns_the_cut_outs_and_a_seed_gives_the_same(tmp_path, run, masks, capsys):
    words = [run, masks, "--steps", 100, "--batch", 6, "--lr", 0.05, "--stage", "layer1", *arguments(tmp_path)]
    figures = evaluate(capsys, *words, command="segment")
    result = figures["results"][0]
    data = open_masked(masks, 3)
    pixels = np.concatenate([mask[mask != IGNORED] for _, mask in map(data.read, data.test)])
    assert result["pixel accuracy"] > (pixels == 0).mean() + 0.02, "more than the photograph everywhere"
    assert result["mIoU"] > 0.42 and len(result["classes"]) == 3, "0.24 if the photograph were everywhere"
    assert figures["data"]["train_images"] == 12 and "mIoU" in figures["text"]
    again = evaluate(capsys, *words, command="segment")["results"][0]
    assert again["mIoU"] == result["mIoU"]


def test_labels_are_carried_over_to_the_cut_outs(tmp_path, run, masks, capsys):
    words = [run, masks, "--k", 5, "--stage", "layer1", *arguments(tmp_path)]
    result = evaluate(capsys, *words, command="dense")["results"][0]
    assert result["mIoU"] > 0.5 and result["patches"] == 12 * 24**2, "0.585 here"
    few = evaluate(capsys, *words, "--patches", 120, command="dense")["results"][0]
    assert few["patches"] == 120


def test_mistakes_are_one_line(tmp_path, run, masks, data, capsys):
    assert "no folders SegmentationClass" in mistake(capsys, run, data, command="segment")
    assert "--test: DATA's own folders say" in mistake(capsys, run, masks, "--test", data, command="dense")
    assert "--steps=0" in mistake(capsys, run, masks, "--steps", 0, command="segment")
    assert "DATA is missing" in mistake(capsys, run, command="segment")
    assert "class 2 of 2; give --classes" in mistake(
        capsys, run, masks, "--classes", 2, "--size", 48, "--cache", "none", command="dense"
    )
    broken = voc(tmp_path / "broken", 2, 2)
    (broken / "SegmentationClass" / "train1.png").unlink()
    with pytest.raises(DatasetError, match=r"train1.png is missing, which the split train names"):
        open_masked(broken)

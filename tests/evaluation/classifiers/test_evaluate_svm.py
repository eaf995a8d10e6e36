"""Support vector machines, average precision, Pascal VOC's files, retrieval."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_score
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC

from evaluation.classifiers.svm import average_precision, eleven_points, fit_class
from evaluation.retrieval import retrieval_sums
from evaluation.voc import open_voc, read_objects
from pipeline.dataset.open import open_dataset
from pipeline.dataset.table import DatasetError
from support.evaluations import evaluate, mistake


def arguments(root):
    places = ["--tables", root / "tables", "--cache", root / "features", "--json", root / "r.json"]
    return [*places, "--backend", "torchvision"]


def examples(count=200, dim=8):
    generator = np.random.default_rng(3)
    targets = np.where(generator.random(count) < 0.2, 1, -1)
    return generator.normal(size=(count, dim)) + 0.4 * targets[:, None], targets


# ---------------------------------------------------------------------------------------------- average precision
def test_average_precision_is_scikit_learns_also_with_ties():
    generator = np.random.default_rng(0)
    for digits in (6, 1, 0):
        scores, targets = generator.normal(size=300).round(digits), np.where(generator.random(300) < 0.3, 1, -1)
        assert average_precision(scores, targets) == pytest.approx(average_precision_score(targets > 0, scores))


def test_images_with_target_0_are_left_out():
    scores, targets = np.array([3.0, 2.0, 1.0, 0.0]), np.array([1, 0, -1, 1])
    assert average_precision(scores, targets) == pytest.approx((1 + 2 / 3) / 2)


def test_eleven_points_by_hand():
    # right, wrong, right: precision 1 up to recall 0.5 (6 of 11 levels), then 2/3 up to recall 1 (5 levels)
    assert eleven_points(np.array([3.0, 2.0, 1.0]), np.array([1, -1, 1])) == pytest.approx((6 + 5 * 2 / 3) / 11)


# ---------------------------------------------------------------------------------------------- machines
def test_the_cost_is_the_best_of_scikit_learns_cross_validation():
    points, targets = examples()
    costs = [1e-4, 1e-2, 1.0]

    def machine(cost):
        return LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual="auto", max_iter=2000, random_state=0)

    theirs = [cross_val_score(machine(c), points, targets, cv=3, scoring="average_precision").mean() for c in costs]
    scores, cost = fit_class(points, targets, points[:20], costs, 3)
    assert cost == costs[int(np.argmax(theirs))]
    np.testing.assert_allclose(scores, machine(cost).fit(points, targets).decision_function(points[:20]))


def test_a_class_without_positive_or_negative_examples_has_no_machine():
    assert fit_class(np.eye(3), np.array([-1, -1, -1]), np.eye(3), [1.0], 3) is None
    assert fit_class(np.eye(3), np.array([1, -1, -1]), np.eye(3), [1.0, 2.0], 3)[1] == 2.0  # nothing to validate with


def test_svm_of_evaluate_agrees_with_scikit_learn_on_the_cached_features(tmp_path, run, data, capsys):
    result = evaluate(capsys, run, data, "--costs", "1", *arguments(tmp_path), command="svm")["results"][0]
    parts = sorted((np.load(path)["features"] for path in (tmp_path / "features").glob("*/part-*.npz")), key=len)
    test, train = (normalize(part).astype(np.float64) for part in parts)
    known, labels = (open_dataset(data / s, tmp_path / "x", workers=1, progress=False).label for s in ("train", "val"))
    machines = [
        LinearSVC(C=1, class_weight={1: 2, -1: 1}, dual="auto", max_iter=2000, random_state=0).fit(
            train, np.where(known == i, 1, -1)
        )
        for i in range(3)
    ]
    scores = np.stack([machine.decision_function(test) for machine in machines], 1)
    assert result["svm top1"] == pytest.approx((scores.argmax(1) == labels).mean())
    expected = np.mean([average_precision_score(labels == i, scores[:, i]) for i in range(3)])
    assert result["mAP"] == pytest.approx(expected, abs=1e-3)
    assert [one["class"] for one in result["classes"]] == ["class0", "class1", "class2"]


# ---------------------------------------------------------------------------------------------- Pascal VOC
XML = "<annotation><filename>{name}.jpg</filename>{objects}</annotation>"
OBJECT = "<object><name>{}</name><difficult>{}</difficult></object>"


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOC2007"
    noise = np.random.default_rng(0)
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    kinds = [[("cat", 0)], [("dog", 0)], [("cat", 1), ("dog", 0)], [("cat", 0), ("cat", 1)]]
    for index in range(16):
        objects = kinds[index % 4]
        bright = 90 * any(name == "dog" for name, _ in objects)
        pixels = (noise.integers(0, 120, (24, 24, 3)) + bright).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"JPEGImages/{index:06d}.jpg")
        text = XML.format(name=f"{index:06d}", objects="".join(OBJECT.format(*one) for one in objects))
        (root / f"Annotations/{index:06d}.xml").write_text(text)
    for split, rows in (("trainval", range(10)), ("test", range(10, 16))):
        (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{row:06d}\n" for row in rows))
    return root


def test_voc_annotations_become_targets(voc, tmp_path):
    data, known, truth = open_voc(voc, str(tmp_path / "t"), progress=False)
    assert data.train.classes == ("cat", "dog")
    assert (len(data.train_rows), len(data.test_rows)) == (10, 6)
    assert known[:4].tolist() == [[1, -1], [-1, 1], [0, 1], [1, -1]]
    assert truth[0].tolist() == [0, 1]  # image 10: a difficult cat does not count
    assert read_objects(voc / "Annotations/000002.xml") == [("cat", True), ("dog", False)]
    (voc / "Annotations/000003.xml").write_text("<annotation>")
    with pytest.raises(DatasetError, match="unreadable annotation"):
        open_voc(voc, str(tmp_path / "t"), progress=False)


def test_voc_is_scored_from_its_folder(voc, run, tmp_path, capsys):
    words = [run, voc, "--size", 24, "--costs", "1,10", *arguments(tmp_path)]
    output = evaluate(capsys, *words, command="svm")
    result = output["results"][0]
    assert [one["class"] for one in result["classes"]] == ["cat", "dog"]
    assert result["mAP"] == pytest.approx(np.mean([one["AP"] for one in result["classes"]]))
    assert "svm top1" not in result and "targets" not in output["settings"]


def test_wrong_folds_are_one_line(run, data, capsys):
    assert "--folds=1" in mistake(capsys, run, data, "--folds", 1, command="svm")


# ---------------------------------------------------------------------------------------------- retrieval
def test_retrieval_figures_by_brute_force():
    generator = torch.Generator().manual_seed(0)
    gallery, queries = (torch.nn.functional.normalize(torch.randn(n, 5, generator=generator)) for n in (40, 13))
    known, labels = (torch.randint(0, 3, (n,), generator=generator) for n in (40, 13))
    sums = retrieval_sums(gallery, known, queries, labels, [1, 5], chunk=4)
    expected = torch.zeros(5, dtype=torch.float64)
    for query, label in zip(queries, labels, strict=True):
        right = (known[(gallery @ query).argsort(descending=True)] == label).double()
        for place, k in enumerate((1, 5)):
            expected[place] += right[:k].max()
            expected[2 + place] += right[:k].mean()
        size = int((known == label).sum())
        expected[4] += sum(right[: i + 1].mean() * right[i] for i in range(size)) / size
    torch.testing.assert_close(sums, expected)


def test_retrieval_writes_its_sheet(tmp_path, run, data, capsys):
    words = [run, data, "--sheet", tmp_path / "s.png", "--queries", 4, *arguments(tmp_path)]
    result = evaluate(capsys, *words, command="retrieval")["results"][0]
    assert result["recall"]["at 1"] == result["precision"]["at 1"] <= result["recall"]["at 10"]
    sheet = np.asarray(Image.open(tmp_path / "s.png"))
    assert sheet.shape[0] > 4 * 96
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 100

"""The report's page and its pictures."""

import json

import numpy as np
import pytest
from sklearn.decomposition import PCA

from evaluation.commands import report
from evaluation.report.pictures import neighbor_plane, principal_plane
from support.evaluations import evaluate, mistake


def places(root):
    return ["--tables", root / "tables", "--cache", root / "features", "--backend", "torchvision"]


def test_the_principal_plane_is_scikit_learns():
    points = np.random.default_rng(0).normal(size=(60, 5)) * [5, 3, 1, 1, 1]
    theirs = PCA(2).fit(points)
    plane, share = principal_plane(points)
    np.testing.assert_allclose(np.abs(plane), np.abs(theirs.transform(points)), atol=1e-8)
    assert share == pytest.approx(theirs.explained_variance_ratio_.sum())


def test_t_sne_keeps_groups_together():
    generator = np.random.default_rng(0)
    group = np.arange(60) % 2
    plane = neighbor_plane((generator.normal(size=(60, 8)) + 12 * group[:, None]).astype(np.float32))
    apart = np.linalg.norm(plane[:, None] - plane[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (group[apart.argmin(1)] == group).all()


def test_one_page_holds_tables_and_pictures(tmp_path, run, data, capsys):
    knn, linear, out = tmp_path / "knn.json", tmp_path / "linear.json", tmp_path / "page.html"
    output = evaluate(capsys, run, data, "--k", "5", *places(tmp_path), "--json", knn)
    evaluate(capsys, run, data, "--epochs", 2, *places(tmp_path), "--json", linear, command="linear")
    words = [run, data, "--peers", "random", "--results", knn, linear, "--out", out, *places(tmp_path)]
    assert report.main([str(word) for word in words]) == 0
    page = out.read_text()
    assert f"{output['results'][0]['k-NN top1']['k=5']:.2%}" in page
    assert page.count('<div class="side">') == 4  # curves; atlas; neighbors of both; planes of both
    # curves; atlas, neighbors and plane of the run; neighbors and plane of the random network
    assert page.count("data:image/png;base64,") == 1 + 3 + 2
    assert "http" not in page


def test_results_alone_make_a_page(tmp_path, run, data, capsys):
    evaluate(capsys, run, data, *places(tmp_path), "--json", tmp_path / "knn.json")
    words = ["none", "--results", tmp_path / "knn.json", "--out", tmp_path / "p.html", "--json", tmp_path / "p.json"]
    assert report.main([str(word) for word in words]) == 0
    assert "data:image" not in (tmp_path / "p.html").read_text()
    assert json.loads((tmp_path / "p.json").read_text())["results"][0]["command"] == "knn"


def test_mistakes_are_one_line(tmp_path, capsys):
    assert "nothing to report" in mistake(capsys, "none", command="report")
    (tmp_path / "x.json").write_text("{}")
    assert "is not a result file" in mistake(capsys, "none", "--results", tmp_path / "x.json", command="report")
    assert "--projection=umap: expected pca or tsne" in mistake(
        capsys, "none", "--projection", "umap", command="report"
    )
    assert "No such file" in mistake(capsys, "none", "--results", tmp_path / "y.json", command="report")

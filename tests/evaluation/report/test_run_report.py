"""report.html of a run: what it shows, what it costs nothing if it fails, and the page in a real browser."""

import json
import re

import numpy as np
import pytest
import torch

from config.recipe import load_config
from evaluation.label_free import rankme
from evaluation.report import __main__ as report
from evaluation.report.lines import Line, line_plot
from evaluation.report.run_files import read_run
from evaluation.report.run_page import run_page
from pipeline.crops import crops_from_config
from pipeline.dataset.open import open_splits
from pipeline.loader import evaluation_batches
from support import browser
from support.tiny_runs import losses, make_workplace, train
from training.trained_network import read_trained

WATCHED = 40


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return make_workplace(tmp_path_factory.mktemp("watched"))


@pytest.fixture(scope="module")
def run(workplace):
    train(workplace, "run", f"evaluation.watched={WATCHED}", "evaluation.every=1", "run.epochs=2")
    return workplace / "run"


@pytest.mark.slow(seconds=3)
def test_the_page_of_a_run_has_curves_pictures_and_settings_and_needs_nothing_else(run):
    text = (run / "report.html").read_text()
    titles = re.findall(r"<h3>(.*?)</h3>", text)
    assert {"Loss, nats", "k-NN accuracy", "Entropy of the codes, nats", "Prototypes in use", "LiDAR"} <= set(titles)
    assert {"Images a second, since the start", "Wait for the loader", "Memory of rank 0, GiB"} <= set(titles)
    assert "before training" in text and "epoch 2" in text and "prototype " in text
    assert "model.heads" in text and "one is enough for codes" in text, "what auto chose"
    assert text.count("data:image/png;base64,") > 1 + 6 * (1 + 2)
    assert "http" not in text and "<script" not in text


def test_measures_are_logged_after_each_epoch(run):
    lines = [line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "rankme" in line]
    assert [line["epoch"] for line in lines] == [-1, *range(len(lines) - 1)] and lines[-1]["epoch"] == 1
    for line in lines:
        assert 1 <= line["lidar"] <= 8.1 and 1 <= line["rankme"] <= 8.1 and line["rankme_features"] >= 1
        assert 0 <= line["nearest_same_class"] <= 1 and line["memory_gib"] > 0.1 and line["watch_seconds"] > 0


def test_neighbors_prototypes_and_measures_are_those_of_the_saved_network(run):
    """Against the last checkpoint's network, called without an engine and compared by numpy."""
    saved, trained = read_run(run), read_trained(run)
    config = load_config([str(run / "config.yaml")])
    table, _ = open_splits(config.data, progress=False)
    usable = table.usable()
    rows = usable[np.linspace(0, len(usable) - 1, WATCHED).astype(int)]
    central = crops_from_config(config.crops, config.pipeline.backend).for_evaluation(16, config.evaluation.share)
    (batch,) = evaluation_batches(table, rows, central, backend=config.pipeline.backend, batch_size=WATCHED)
    with torch.no_grad():
        embeddings, scores, _, features = trained.network([batch.crops[0].float()], WATCHED)
    unit = features.numpy() / np.linalg.norm(features.numpy(), axis=1, keepdims=True)
    last = saved.seen[-1]
    assert last.epoch == 2 and len(last.queries) == 6
    for query, neighbors in zip(last.queries, last.neighbors, strict=True):
        cosines = unit @ unit[query]
        cosines[query] = -2
        assert np.allclose(np.sort(cosines)[::-1][: len(neighbors)], cosines[neighbors], atol=1e-4)
    nearest = scores[0].argmax(1).numpy()
    for prototype in last.prototypes:
        assert (nearest[prototype["images"]] == prototype["number"]).all()
        assert prototype["size"] == (nearest == prototype["number"]).sum()
    logged = [line for line in saved.metrics if "rankme" in line][-1]
    assert logged["rankme"] == pytest.approx(rankme(embeddings[0]), rel=1e-3)
    assert logged["rankme_features"] == pytest.approx(rankme(features), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_two_ranks_see_what_one_sees_and_training_takes_the_same_steps(workplace, run, stage):
    words = (f"evaluation.watched={WATCHED}", "evaluation.every=1", "run.epochs=2", f"engine.stage={stage}")
    train(workplace, f"two{stage}", *words, ranks=2)
    train(workplace, f"unwatched{stage}", *words[1:], ranks=2)
    assert losses(workplace, f"two{stage}") == losses(workplace, f"unwatched{stage}")
    one, two = read_run(run), read_run(workplace / f"two{stage}")
    assert [seen.epoch for seen in two.seen] == [0, 1, 2]
    assert one.seen[0] == two.seen[0], "before training all networks are the same"


def test_a_report_that_fails_does_not_end_the_run(workplace):
    (workplace / "failing").mkdir()
    (workplace / "failing" / "report").write_text("a file where the folder would be")
    (workplace / "failing" / "report.html").mkdir()  # the page cannot be written either
    output = train(workplace, "failing", f"evaluation.watched={WATCHED}", "run.epochs=1")
    assert output.count("no measures without labels and no pictures in the report from here on") == 1
    assert "report.html is not written: IsADirectoryError" in output
    assert (workplace / "failing" / "summary.json").exists() and len(losses(workplace, "failing")) == 8


def test_several_runs_are_side_by_side(run, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("metrics.jsonl", "config.yaml"):
        (other / name).write_text((run / name).read_text().replace("base_lr: 0.5", "base_lr: 0.25"))
    assert report.main([str(run), str(other), "--out", str(tmp_path / "both.html")]) == 0
    text = (tmp_path / "both.html").read_text()
    assert "other: loss" in text and "run: loss" in text
    differ = text.partition("Settings that differ")[2].partition("</table>")[0]
    assert re.findall(r"<td>(.*?)</td>", differ) == ["optimizer.base_lr", "0.5", "0.25"]
    assert report.main([str(tmp_path)]) == 2
    assert "no metrics.jsonl there" in capsys.readouterr().err


def test_a_run_that_was_killed_while_it_wrote_has_a_page(run, tmp_path):
    (tmp_path / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text()[:2000])
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "images.npz").write_bytes(b"damaged")
    assert "Loss, nats" in run_page([read_run(tmp_path)])


def test_a_plot_is_where_its_numbers_are():
    svg = line_plot("x", [Line("a", [0, 1, 2], [0.0, float("nan"), 0.5]), Line("empty", [], [])], "%")
    assert svg.count('class="line"') == 1
    ((x0, y0), (x1, y1)) = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert float(x0) == 52 and float(x1) == 368 and float(y0) > float(y1)
    assert re.findall(r">([\d.]+%)<", svg) == ["0%", "20%", "40%"]
    assert line_plot("x", [Line("a", [1], [float("nan")])]) is None
    assert line_plot("x", [Line("a", [1], [3.0])]) is not None, "one point"


@pytest.mark.slow(seconds=3)
@pytest.mark.skipif(not browser.program(), reason="no Chromium here (Debian: chromium)")
def test_in_a_browser_at_two_widths_light_and_dark_without_a_request(run, tmp_path):
    (tmp_path / "both.html").write_text(run_page([read_run(run), read_run(run)]))
    grounds = {}
    with browser.Browser() as shown:
        for page in (run / "report.html", tmp_path / "both.html"):
            for width in browser.WIDTHS:
                for scheme in browser.SCHEMES:
                    facts = shown.show(page, width, scheme)
                    assert facts["width"] == facts["scroll_width"] == width
                    assert not facts["overlapping"] and not facts["cut"], facts
                    assert facts["scripts"] == 0 and facts["plots"] >= 12
                    grounds[scheme] = facts["background"], facts["ink"]
        pictures = [url for url in shown.requests if not url.startswith("file:")]
        assert all(url.startswith("data:image/png;base64,") for url in pictures)
        assert {url for url in shown.requests if url.startswith("file:")} == {
            (run / "report.html").as_uri(),
            (tmp_path / "both.html").as_uri(),
        }
        assert not shown.complaints
    assert grounds["light"] != grounds["dark"]

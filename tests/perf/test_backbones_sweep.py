"""perf.backbones on two small models of timm."""

import json

import pytest

from perf import backbones


@pytest.mark.slow
def test_models_are_checked_once_and_the_page_has_them(tmp_path):
    page, results = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text("# Backbones\n\nWords of a person.\n\n" + backbones.MARK + "old")
    arguments = ["resnet10t", "test_vit", "--shapes", "--json", str(results), "--page", str(page)]
    assert backbones.main(arguments) == 0
    report = json.loads(results.read_text())
    assert report["models"]["resnet10t"]["sizes"] == [224, 96] and report["models"]["resnet10t"]["feature_dim"] == 512
    text = page.read_text()
    assert text.startswith("# Backbones\n\nWords of a person.\n") and "old" not in text
    assert f"2 of the {report['in_timm']} models" in text and "| `resnet10t` | 4.9 M | 512 | 224, 96 |" in text
    report["models"]["resnet10t"] |= {"feature_dim": 7}
    results.write_text(json.dumps(report))
    assert backbones.main(arguments) == 0  # nothing is missing
    assert json.loads(results.read_text())["models"] == report["models"]


def test_a_refused_model_is_counted_and_comes_with_its_reason():
    entry = {"parameters": 5, "family": "eva", "checked": "shapes", "reason": "patches | do not fit"}
    text = backbones.table({"models": {"eva": entry}, "timm": "1", "in_timm": 9, "machine": {"date": "2026-11-29"}})
    assert "| up to 60 million parameters | 1 | 0 | 0 | 1 | 0 |" in text
    assert "| `eva` | patches   do not fit |" in text


def test_a_pattern_without_models_is_one_line(capsys, tmp_path):
    page = ["--json", str(tmp_path / "a.json"), "--page", str(tmp_path / "a.md")]
    assert backbones.main(["nothing_*", *page]) == 2
    assert "no model of timm is called nothing_*" in capsys.readouterr().err

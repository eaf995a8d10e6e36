"""perf.backbones.exports on a small model of timm, which is built for one size."""

import json

import pytest

from perf.backbones import exports


@pytest.mark.slow(seconds=30)
def test_a_family_is_exported_once_and_every_format_gives_the_same_features(tmp_path, monkeypatch):
    page, results = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text("# Export\n\nWords of a person.\n\n" + exports.MARK + "old")
    arguments = ["maxxvit", "--json", str(results), "--page", str(page)]
    assert exports.main(arguments) == 0
    entry = json.loads(results.read_text())["families"]["maxxvit"]
    assert entry["model"] == "test_coatnet" and entry["size"] == 160
    for format in exports.FORMATS:
        assert entry[format] <= exports.LIMIT, format
    text = page.read_text()
    assert text.startswith("# Export\n\nWords of a person.\n") and "old" not in text
    assert "| maxxvit | `test_coatnet` | 160 | 0 | 0 |" in text
    monkeypatch.setattr(exports, "check", lambda *_: pytest.fail("nothing is missing"))
    assert exports.main(arguments) == 0


def test_refusals_are_in_the_table_with_their_reasons():
    entry = {"model": "x", "size": 224, **dict.fromkeys(exports.FORMATS, 0.0), "onnx": "no | such"}
    text = exports.table({"families": {"vit": entry}, "machine": {"date": "2026-11-30"}})
    assert "| vit | `x` | 224 | 0 | 0 | 0 | 0 | refused |" in text and "| `x` | onnx | no   such |" in text


def test_a_family_that_is_not_there_is_one_line(capsys, tmp_path):
    files = ["--json", str(tmp_path / "a.json"), "--page", str(tmp_path / "a.md")]
    assert exports.main(["nothing", *files]) == 2
    assert "no model of the family nothing is in" in capsys.readouterr().err

"""perf.nearest at toy size: its turns, and the shape of its report."""

import json

import torch

from perf import nearest


def test_the_search_is_timed_beside_its_products(tmp_path, capsys):
    out = tmp_path / "out.json"
    words = ["--bank", "3000", "--dim", "16", "--queries", "40", "--rounds", "2", "--json", str(out)]
    assert nearest.main(words) == 0
    report = json.loads(out.read_text())
    assert {name: len(seconds) for name, seconds in report["seconds"].items()} == {
        "products": 2, "products and topk": 2, "k-NN": 2,
    }  # fmt: skip
    assert all(second > 0 for seconds in report["seconds"].values() for second in seconds)
    assert (report["bank"], report["queries"], report["neighbors"]) == (3000, 40, 20) and report["memory"] >= 0
    shown = capsys.readouterr().out
    assert "40 queries among 3,000 rows of 16 features" in shown and "k-NN takes 1.00 of it" in shown


def test_the_rows_have_unit_length():
    rows = nearest.unit_rows(70_000, 3)
    assert torch.allclose(rows.norm(dim=1), torch.ones(70_000))

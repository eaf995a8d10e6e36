"""The HTML page and the Markdown of a report, and the page in a real browser."""

import re

import pytest

from perf.report.markdown import markdown
from perf.report.page import page
from perf.report.plots import plots
from perf.report.sections import headline, sections
from perf.report.verdict import sentences, verdict
from support import browser
from support.sample_report import sample


def test_the_page_has_every_plot_with_a_table_and_is_self_contained():
    report = sample()
    text = page(report)
    drawn = plots(report)
    assert set(drawn) == {
        "phases", "ranks", "roofline", "variants", "rates", "threads", "batches", "sizes", "stages", "nodes",
        "held_out", "prototypes",
    }  # fmt: skip
    assert text.count("<svg") == len(drawn)
    assert text.count("<table>") == sum(len(section.tables) for section in sections(report)) + 1
    assert "<script" not in text and "src=" not in text
    assert not re.findall(r"(?:url\(|href=\")https?:", text)
    assert all(sentence in text for sentence in sentences(report))
    assert all(figure in text and what in text for what, figure in headline(report))
    assert not re.search(r"#0102\w\w", text), "a color that does not follow light and dark"


def test_markdown_has_the_same_tables():
    report = sample()
    text = markdown(report)
    for section in sections(report):
        assert f"## {section.title}" in text
        for table in section.tables:
            assert f"**{table.title}**" in text
            width = {line.count(" | ") for line in text.split(f"**{table.title}**")[1].split("\n\n")[1].splitlines()}
            assert len(width) == 1


def test_the_page_says_why_a_part_failed_and_still_shows_the_others():
    report = sample() | {"sinkhorn": None, "failed": {"sinkhorn": "a rank ended <with> 1"}}
    text = page(report)
    assert "Not measured: a rank ended &lt;with&gt; 1" in text
    assert text.count("<svg") == len(plots(report)) == 9


def test_the_verdict_has_a_sentence_for_each_part():
    report = sample()
    text = verdict(report)
    assert text.startswith("Loader-bound: the network waits 38 % of each step")
    assert "1,500 images/s with backend ffcv: enough for 1.1 devices at 1,400 images/s each" in text
    assert "pass 1 % of a step at 100 nodes (20 us a hop), and stay below 5 % on up to 512" in text
    report["sinkhorn"]["nodes_at_1_percent"]["ours"] = None
    assert "stay below 1 % of a step on up to 512 nodes" in verdict(report)
    assert verdict({}) == "Nothing was measured."


@pytest.mark.slow(seconds=3)
@pytest.mark.skipif(not browser.program(), reason="no Chromium here (Debian: chromium)")
def test_in_a_browser_at_two_widths_light_and_dark(tmp_path):
    (tmp_path / "report.html").write_text(page(sample()))
    grounds = {}
    with browser.Browser() as shown:
        for width in browser.WIDTHS:
            for scheme in browser.SCHEMES:
                facts = shown.show(tmp_path / "report.html", width, scheme)
                assert facts["width"] == facts["scroll_width"] == width
                assert not facts["overlapping"] and not facts["cut"], facts
                assert facts["scripts"] == 0 and facts["plots"] == 12
                grounds[scheme] = facts["background"], facts["ink"]
                shown.screenshot(tmp_path / "shot.png")
                assert (tmp_path / "shot.png").stat().st_size > 20_000
        assert all(url.startswith("file:") for url in shown.requests), shown.requests
        assert not shown.complaints
    assert grounds["light"] != grounds["dark"]

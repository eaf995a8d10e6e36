"""The report's HTML: one page that contains its pictures."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from evaluation.command import figure_texts
from pipeline.dataset.accounting import losses

STYLE = """
:root { color-scheme: light dark;
  --c0: light-dark(#1f6fb2, #6cb0e8); --c1: light-dark(#c4572a, #ee8f62); --c2: light-dark(#3f8f4f, #7cc68c);
  --c3: light-dark(#b3263c, #f07a8b); --c4: light-dark(#7a5ba6, #b79be0); --c5: light-dark(#7d8893, #8d98a3);
  --c6: light-dark(#94700f, #dcb54f); --c7: light-dark(#1f8080, #66c7c7); }
* { box-sizing: border-box; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5em auto; max-width: 1240px; padding: 0 1em;
       color: light-dark(#222, #ddd); background: light-dark(#fff, #181a1b); }
h1, h2, h3 { font-weight: 600; overflow-wrap: anywhere; line-height: 1.25; }
h2 { margin-top: 2em; border-bottom: 1px solid light-dark(#ccc, #444); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1em 0; }
td, th { padding: .25em .8em; border-bottom: 1px solid light-dark(#ddd, #3a3a3a); }
th { font-weight: 600; vertical-align: bottom; } th:first-child, td:first-child { text-align: left; padding-left: 0; }
td + td, th + th { text-align: right; font-variant-numeric: tabular-nums; }
@media (max-width: 30em) { td, th { padding: .25em .45em; } body { font-size: 14px; } }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 34em), 1fr)); gap: 0 1.5em; }
figure { margin: 1em 0; min-width: 0; } img { max-width: 100%; height: auto; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21em), 1fr)); gap: 0 1.5em; }
.plots figure { margin: .6em 0; } .plots h3, h3 { font-size: 1em; margin: .4em 0; } summary { cursor: pointer; }
svg { display: block; width: 100%; height: auto; } svg text { font: 11px system-ui, sans-serif; fill: currentColor; }
.grid { stroke: light-dark(#e3e3e3, #33373a); fill: none; } .line { fill: none; stroke-width: 1.6; }
.names span { margin-right: 1em; } .names { margin: .2em 0; font-size: 85%; overflow-wrap: anywhere; }
i { display: inline-block; width: 1.4em; border-top: 3px solid; vertical-align: middle; margin-right: .35em; }
i.dashed { border-top-style: dashed; } td.word { text-align: left; overflow-wrap: anywhere; }
.strips { margin: 0; } .strips td { padding: 2px .6em 2px 0; border: 0; white-space: nowrap; text-align: left; }
.strips img { max-width: none; display: block; }
figcaption, .note { color: light-dark(#666, #aaa); font-size: 90%; overflow-wrap: anywhere; }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """The whole document."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    body = f"<h1>{html.escape(title)}</h1>{''.join(parts)}"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def heading(text: str, level: int = 2) -> str:
    return f"<h{level}>{html.escape(text)}</h{level}>"


def picture(image: Image.Image, caption: str) -> str:
    """A picture inside the page, with a caption."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def side_by_side(figures: Sequence[str]) -> str:
    """Pictures of one kind, side by side if there is room, or else below each other."""
    return f'<div class="side">{"".join(figures)}</div>'


def result_tables(wholes: Sequence[dict[str, Any]]) -> list[str]:
    """A table for each command and dataset, with the backbones of all files as rows."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for whole in wholes:
        groups.setdefault((whole["command"], whole["data"]["path"]), []).append(whole)
    parts = []
    for (command, path), members in groups.items():
        results = [result for whole in members for result in whole["results"]]
        texts = [figure_texts(result) for result in results]
        columns = list(dict.fromkeys(name for one in texts for name in one))
        rows = [
            [result["backbone"], *(one.get(name, "") for name in columns)]
            for result, one in zip(results, texts, strict=True)
        ]
        data = members[0]["data"]
        counted = ", ".join(f"{v:,} {k.replace('_', ' ')}" for k, v in data.items() if isinstance(v, int))
        notes = [counted, *losses(data.get("accounting", {}))]
        parts += [heading(f"{command} on {path}"), *(f'<p class="note">{html.escape(note)}</p>' for note in notes)]
        parts.append(rows_table(["backbone", *columns], rows))
    return parts


def rows_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls by itself where the page is narrow."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'

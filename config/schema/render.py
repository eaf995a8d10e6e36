"""The settings as text: default.yaml, docs/settings.md, and help in a terminal."""

from __future__ import annotations

import difflib
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from config.errors import ConfigError
from config.schema.ranges import alternatives
from config.schema.setting import Heading, Setting
from config.schema.settings import outline

WIDTH = 120
COMMENTS = 36  # column at which comments start in default.yaml

YAML_HEAD = """\
# Every setting, with its default. Written by `make default-yaml` from config/schema; docs/settings.md has the ranges.
# A recipe (config/*.yaml) overrides what it names; the command line overrides both:
#   train.py config/demo.yaml optimizer.base_lr=0.01 crops.local.count=4
# `auto` is chosen from the data and the batch at the start, and printed with the reason.

"""

PAGE_HEAD = """\
# Settings

Written by `make default-yaml` from `config/schema`. `make help-settings` prints the same in a terminal, and
`train.py --help KEY` (`optimizer.base_lr`, or a whole section: `optimizer`) a part of it.

A recipe (`config/*.yaml`) overrides the defaults, and `key=value` arguments override the recipe. `auto` is chosen from
the data, the batch and the machine at the start, and printed with the reason. The last column says whether a run may
resume with another value, and what happens then. "no" means that another value is refused: it needs another
`run.directory`. `auto` then stands for the value with which the run has begun, also if the number of epochs changes.
Where another value is allowed, `auto` is chosen again at each start, or stays what it was, as the table says.
"""


# ---------------------------------------------------------------------- default.yaml
def default_yaml() -> str:
    """The text of config/default.yaml."""
    lines: list[str] = []
    for entry in outline():
        depth = entry.key.count(".")
        if isinstance(entry, Heading):
            if entry.key:
                blank = [""] if depth == 0 else []
                lines += [*blank, *_commented(f"{'  ' * depth}{_name(entry)}:", entry.help.rstrip("."))]
        else:
            value = f"{'  ' * depth}{_name(entry)}: {shown(entry.default)}"
            lines += _commented(value, _with_choices(entry))
    return YAML_HEAD + "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    """A value in YAML, on one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, float) and value and abs(value) < 1e-4:
        exponent = math.floor(math.log10(abs(value)))
        return f"{value / 10**exponent:.1f}e{exponent}"
    return str(value)


def _with_choices(setting: Setting) -> str:
    """The help text, with the choices in front where the values are a few words."""
    choices = [get_args(kind) for kind, _ in alternatives(setting.annotation) if get_origin(kind) is Literal]
    words = " | ".join(choices[0]) if choices and len(choices[0]) > 1 else ""
    return f"{words}; {setting.help}" if words else setting.help


def _commented(text: str, comment: str) -> list[str]:
    """`text  # comment`, the comment wrapped below itself."""
    text = f"{text} ".ljust(COMMENTS)
    first, *more = textwrap.wrap(comment, WIDTH - COMMENTS - 2) or [""]
    return [f"{text}# {first}" if first else text.rstrip(), *(f"{' ' * COMMENTS}# {line}" for line in more)]


def _name(entry: Heading | Setting) -> str:
    return entry.key.rpartition(".")[2]


# ---------------------------------------------------------------------- docs/settings.md
def settings_page() -> str:
    """The text of docs/settings.md."""
    return PAGE_HEAD + "".join(
        f"\n## {title}\n\n{help}\n\n{_table(entries)}" for title, help, entries in _top_sections()
    )


def _top_sections() -> Iterator[tuple[str, str, list[Setting]]]:
    """Title, help and settings of each part of the page; `method`, which is in no section, comes first."""
    entries = outline()
    yield "method", "Where the targets come from.", [e for e in entries if isinstance(e, Setting) and "." not in e.key]
    for heading in entries:
        if isinstance(heading, Heading) and heading.key and "." not in heading.key:
            inside = [e for e in entries if isinstance(e, Setting) and e.key.startswith(heading.key + ".")]
            yield heading.key, heading.help, inside


def _table(entries: Iterable[Setting]) -> str:
    rows = ["| setting | default | takes | what it is | may change on resume |", "| --- | --- | --- | --- | --- |"]
    for entry in entries:
        default = "to be given" if entry.required else f"`{shown(entry.default)}`"
        cells = [f"`{entry.key}`", default, entry.range, entry.help, _resume(entry)]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _resume(setting: Setting) -> str:
    if setting.resume:
        again = "stays what it was" if setting.keeps_auto else "is chosen again"
        return f"yes ({setting.resume}{f'; `auto` {again}' if setting.auto else ''})"
    return "no; `auto` keeps the run's value" if setting.auto else "no"


# ---------------------------------------------------------------------- a terminal
def help_text(names: Sequence[str] = ()) -> str:
    """Help for the settings and sections of these names; without names, for all. Raises ConfigError for others."""
    chosen = [entry for name in names for entry in _chosen(name)] if names else outline()
    return "\n".join(_paragraph(entry) for entry in chosen if entry.key).replace("\n\n\n", "\n\n").strip("\n")


def _chosen(name: str) -> list[Heading | Setting]:
    """The entries of this key and below; else settings with this last word; else the mapping that holds the key."""
    entries = [entry for entry in outline() if entry.key]
    settings = [entry for entry in entries if isinstance(entry, Setting)]
    chosen = (
        [entry for entry in entries if f"{entry.key}.".startswith(f"{name}.")]
        or [entry for entry in settings if entry.key.endswith(f".{name}")]
        or [entry for entry in settings if entry.free and name.startswith(f"{entry.key}.")]
    )
    if not chosen:
        near = difflib.get_close_matches(name, [entry.key for entry in entries], n=1, cutoff=0.0)
        raise ConfigError(f"{name}: no such setting or section; the nearest is {near[0]}")
    return list(chosen)


def _paragraph(entry: Heading | Setting) -> str:
    if isinstance(entry, Heading):
        return f"\n{entry.key}: {entry.help}\n"
    lines = [f"  {entry.key}={shown(entry.default)}".ljust(40) + f" {entry.range}"]
    for text in (entry.help, f"may change on resume: {_resume(entry)}"):
        lines += textwrap.wrap(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 8)
    return "\n".join(lines)

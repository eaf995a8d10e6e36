"""Emoji as three hands draw them: Noto (Google), Twemoji (Twitter) and Fluent 3D (Microsoft), 1,900 symbols each.

The label is the category that Unicode gives the symbol (smileys, food, flags, ...). All drawings of a symbol are on one
side of the split, so whether its drawings by other hands are found among those of all test symbols is a test without
labels. Skin tones are left out.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.collections.drawings import Drawing, pack_drawings
from pipeline.collections.packages import Unavailable, from_npm
from pipeline.dataset.table import SampleTable

LICENSE = "Noto: Apache 2.0; Twemoji: CC BY 4.0, by Twitter and contributors; Fluent: MIT, by Microsoft"


class Hand(NamedTuple):
    """Who draws: an npm package, its version, the SHA-512 of its archive (base64) and its size in bytes; where the
    drawings are in it."""

    name: str
    package: str
    version: str
    sha512: str
    bytes: int
    folder: str
    suffix: str


HANDS = (
    Hand(
        "noto", "emoji-datasource-google", "16.0.0",
        "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
        74_344_091, "img/google/64", "png",
    ),
    Hand(
        "twemoji", "emoji-datasource-twitter", "16.0.0",
        "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
        61_683_754, "img/twitter/64", "png",
    ),
    Hand(
        "fluent", "@lobehub/fluent-emoji-3d", "1.1.0",
        "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        15_792_027, "assets", "webp",
    ),
)  # fmt: skip
SYMBOLS = "emoji.json"  # in the first package: every symbol with its category
NO_CATEGORY = "Component"  # skin tones


def prepare(out: Path, fetched: Path, workers: int, progress: bool) -> dict[str, SampleTable]:
    """Fetch into the folder `fetched`, and pack into `out`. Raises Unavailable, DatasetError."""
    folders = [unpacked(hand, fetched, progress) for hand in HANDS]
    symbols = json.loads((folders[0] / SYMBOLS).read_text())
    return pack_drawings(*drawings(symbols, folders), out, LICENSE, workers, progress)


def unpacked(hand: Hand, fetched: Path, progress: bool) -> Path:
    """The folder of a hand's package; only drawings and the list of symbols are unpacked. Raises Unavailable."""
    archive = from_npm(hand.package, hand.version, hand.sha512, hand.bytes, fetched, progress)
    folder = fetched / hand.name
    shutil.rmtree(folder, ignore_errors=True)  # of a call that was killed
    wanted = f"package/{hand.folder}/"
    try:
        with tarfile.open(archive) as tar:
            members = [m for m in tar if m.isfile() and (m.name.startswith(wanted) or m.name == f"package/{SYMBOLS}")]
            tar.extractall(folder, members, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise Unavailable(f"{archive.name} cannot be unpacked ({error})") from None
    return folder / "package"


def drawings(symbols: list[dict[str, Any]], folders: list[Path]) -> tuple[list[Drawing], tuple[str, ...]]:
    """The drawings of all hands, symbol by symbol, and the categories. A name is CODEPOINTS-HAND."""
    symbols = sorted((s for s in symbols if s["category"] != NO_CATEGORY), key=lambda symbol: symbol["unified"])
    classes = tuple(sorted({symbol["category"] for symbol in symbols}))
    found = [
        Drawing(path, f"{symbol['unified'].lower()}-{hand}", number, classes.index(symbol["category"]))
        for number, symbol in enumerate(symbols)
        for hand, path in drawn(symbol, folders)
    ]
    return found, classes


def drawn(symbol: dict[str, Any], folders: list[Path]) -> Iterator[tuple[str, Path]]:
    """Hand and file of each drawing of a symbol. The packages write its code points with or without the selector of
    the colored form (FE0F)."""
    code = symbol["unified"].lower()
    for hand, folder in zip(HANDS, folders, strict=True):
        names = dict.fromkeys((code, code.replace("-fe0f", ""), (symbol["non_qualified"] or code).lower()))
        for path in (folder / hand.folder / f"{name}.{hand.suffix}" for name in names):
            if path.exists():
                yield hand.name, path
                break

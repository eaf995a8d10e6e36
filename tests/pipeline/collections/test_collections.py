"""Collections from package registries: fetched by the registries' clients, split without leakage, packed."""

import base64
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from pipeline.collections import emoji, openclipart
from pipeline.collections.__main__ import main
from pipeline.collections.drawings import LONGEST, complete, on_white, tables_of
from pipeline.collections.near_duplicates import for_test, groups_of, perceptual_hash
from pipeline.dataset.shards import pack
from pipeline.dataset.table import DatasetError

TOPS = ("animals", "food", "unsorted")


def drawing(seed: int, size: tuple[int, int] = (90, 60)) -> Image.Image:
    """A drawing with a transparent ground: ellipses in random places and colors."""
    random = np.random.RandomState(seed)
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    for _ in range(6):
        x, y = random.randint(0, size[0] - 10), random.randint(0, size[1] - 10)
        color = (*random.randint(0, 256, 3).tolist(), 255)
        ImageDraw.Draw(image).ellipse([x, y, x + random.randint(8, 60), y + random.randint(8, 60)], fill=color)
    return image


def program(folder: Path, name: str, script: str) -> None:
    """A registry's client, replaced by a script that serves a local package."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!{sys.executable}\nimport pathlib, shutil, sys\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def debian(tmp_path, monkeypatch):
    """A real .deb of 72 drawings in three folders, one of which is there three times (a link, and in another size), and
    an apt-get that copies it; the file `calls` has a line for each download."""
    root = tmp_path / "package" / openclipart.FOLDER
    for top in TOPS:
        (root / top / "some").mkdir(parents=True)
        for number in range(24):
            seed = TOPS.index(top) * 100 + number
            drawing(seed).save(root / top / "some" / f"picture v.{number}.png")
    drawing(3).resize((300, 200)).save(root / "food" / "again.png")
    (root / "food" / "link.png").symlink_to("../animals/some/picture v.3.png")
    (root / "food" / "broken.png").write_bytes(b"\x89PNG no more")
    control = tmp_path / "package" / "DEBIAN" / "control"
    control.parent.mkdir()
    control.write_text(
        "Package: openclipart-png\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.org>\nDescription: d\n"
    )
    deb, calls = tmp_path / "openclipart-png_1_all.deb", tmp_path / "calls"
    subprocess.run(["dpkg-deb", "-b", str(control.parents[1]), str(deb)], check=True, capture_output=True)
    program(tmp_path / "bin", "apt-get", f"shutil.copy({str(deb)!r}, '.')\nopen({str(calls)!r}, 'a').write('call\\n')")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    files = sorted(path for path in root.rglob("*.png") if not path.is_symlink())
    monkeypatch.setattr(openclipart, "SHA256", openclipart.digest(root, files))
    return calls


def group_of(name: str) -> str:
    return name.split(":")[1].split("/")[0]


needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb here")


@needs_dpkg
def test_open_clip_art_is_fetched_once_split_by_groups_and_said(debian, tmp_path, capsys):
    out = tmp_path / "data" / "openclipart"
    assert main(["openclipart", "--out", str(out)]) == 0
    said = capsys.readouterr().out.splitlines()
    tables = tables_of(out)
    train, test = tables["train"], tables["test"]
    assert said[0] == f"{out}: ready ({len(train)} train, {len(test)} test images)"
    assert "left out: 1 (too large or damaged)" in said[1] and "public domain" in said[2]
    assert len(train) + len(test) == 73 and len(test) > 5  # neither the link nor the damaged file
    assert train.classes == ("animals", "food")
    assert sorted(np.concatenate([train.label, test.label]).tolist()) == [-1] * 24 + [0] * 24 + [1] * 25
    groups = {split: {group_of(table.name(row)) for row in range(len(table))} for split, table in tables.items()}
    assert not groups["train"] & groups["test"]
    names = [table.name(row) for table in tables.values() for row in range(len(table))]
    twins = [group_of(name) for name in names if "again" in name or name.endswith("-picture_v_3.png")]
    assert len(twins) == 4 and twins.count(next(group_of(name) for name in names if "again" in name)) == 2

    assert main(["openclipart", "--out", str(out)]) == 0
    assert "exists already" in capsys.readouterr().out
    assert debian.read_text() == "call\n"
    assert [path.name for path in out.parent.iterdir() if path.is_dir()] == ["openclipart"]


@needs_dpkg
def test_a_call_that_was_ended_goes_on_with_what_it_has(debian, tmp_path, monkeypatch):
    out = tmp_path / "openclipart"

    def ended_before_the_test(records, folder, *rest, **more):
        if folder.name == "test":
            raise KeyboardInterrupt
        return pack(records, folder, *rest, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pipeline.collections.drawings.pack", ended_before_the_test)
        main(["openclipart", "--out", str(out)])
    assert not complete(out)
    written = (out / "train" / "table.npz").stat().st_mtime_ns
    assert main(["openclipart", "--out", str(out)]) == 0
    assert complete(out) and (out / "train" / "table.npz").stat().st_mtime_ns == written
    assert debian.read_text() == "call\n"


@needs_dpkg
def test_other_drawings_are_refused_in_one_line(debian, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(openclipart, "SHA256", "0" * 64)
    out = tmp_path / "openclipart"
    assert main(["openclipart", "--out", str(out)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("swave:")]
    assert "openclipart cannot be fetched" in line and "SHA-256" in line
    assert not out.exists()


# ---------------------------------------------------------------------------------------------- emoji


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """Archives of three hands that draw eight symbols, with the selector FE0F in some names, and an npm that copies
    them."""
    symbols = [
        {"unified": f"1F60{n}-FE0F", "non_qualified": f"1F60{n}", "category": "Food" if n % 2 else "Faces"}
        for n in range(8)
    ]
    symbols.append({"unified": "1F3FB", "non_qualified": None, "category": "Component"})
    hands = []
    for number, hand in enumerate(emoji.HANDS):
        archive = tmp_path / f"{hand.package.replace('@', '').replace('/', '-')}-{hand.version}.tgz"
        with tarfile.open(archive, "w:gz") as tar:
            files = {f"package/{emoji.SYMBOLS}": json.dumps(symbols).encode()}
            for n in range(8):
                name = f"1f60{n}" + "-fe0f" * (number != 1)
                file = io.BytesIO()
                drawing(10 * n + number).save(file, {"png": "PNG", "webp": "WEBP"}[hand.suffix])
                files[f"package/{hand.folder}/{name}.{hand.suffix}"] = file.getvalue()
            files["package/../../outside"] = b"not a drawing"
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        hands.append(hand._replace(sha512=digest))
    names = "sys.argv[3].replace('@lobehub/', 'lobehub-').replace('@', '-')"
    program(tmp_path / "bin", "npm", f"shutil.copy(pathlib.Path({str(tmp_path)!r}) / ({names} + '.tgz'), '.')")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setattr(emoji, "HANDS", tuple(hands))
    return hands


def test_all_drawings_of_a_symbol_are_on_one_side(npm, tmp_path):
    out = tmp_path / "emoji"
    assert main(["emoji", "--out", str(out)]) == 0
    sides = {}
    for split, table in tables_of(out).items():
        assert table.classes == ("Faces", "Food")
        for row in range(len(table)):
            code, hand = table.name(row).split("/")[-1].removesuffix(".png").rsplit("-", 1)
            assert hand in ("noto", "twemoji", "fluent") and table.label[row] == int(code[4]) % 2
            sides.setdefault(code, []).append(split)
    assert len(sides) == 8 and all(len(split) == 3 and len(set(split)) == 1 for split in sides.values())
    assert not (tmp_path / "outside").exists()


def test_another_archive_is_refused_and_not_kept(npm, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(emoji, "HANDS", (npm[0], npm[1]._replace(sha512="AAAA"), npm[2]))
    assert main(["emoji", "--out", str(tmp_path / "emoji")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("swave: --out=") and "emoji-datasource-twitter-16.0.0.tgz is not the published file" in line
    assert [path.name for path in (tmp_path / ".emoji.fetched").glob("*.tgz")] == ["emoji-datasource-google-16.0.0.tgz"]


def test_without_npm_one_line_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["emoji", "--out", str(tmp_path / "emoji")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("swave: ")
    assert line.endswith("no npm here, which fetches emoji-datasource-google; install Node.js")


def test_where_images_are_missing_the_message_names_what_fetches_them():
    from pipeline.collections.prepare import NAMES
    from pipeline.dataset.open import COLLECTIONS, open_dataset

    assert set(COLLECTIONS) == set(NAMES)
    with pytest.raises(DatasetError, match="`make data NAME=emoji` fetches it"):
        open_dataset(Path("/nowhere/data/emoji"), "/nowhere/tables")


def test_an_unknown_name_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["imagenet"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "swave: NAME=imagenet: there are fashion-mnist, openclipart, emoji\n"


# ---------------------------------------------------------------------------------------------- drawings


def test_a_drawing_is_put_on_white_and_shrunk(tmp_path):
    image = Image.new("RGBA", (400, 100), (255, 0, 0, 0))
    ImageDraw.Draw(image).rectangle([0, 0, 199, 99], fill=(0, 0, 255, 255))
    image.save(tmp_path / "a.png")
    pixels = np.asarray(Image.open(io.BytesIO(on_white(tmp_path / "a.png").png)))
    assert pixels.shape == (LONGEST // 4, LONGEST, 3)
    assert pixels[16, 10].tolist() == [0, 0, 255] and pixels[16, -10].tolist() == [255, 255, 255]


def bits(one: Image.Image, other: Image.Image) -> int:
    return int((perceptual_hash(one) != perceptual_hash(other)).sum())


def test_hashes_of_near_duplicates_are_near_and_others_are_not():
    pictures = []
    for seed in range(6):
        white = Image.new("RGBA", (90, 60), "white")
        white.alpha_composite(drawing(seed))
        pictures.append(white)
    for picture in pictures:
        assert bits(picture, picture.resize((270, 180))) <= 6
        assert bits(picture, picture.point(lambda value: value * 0.8)) <= 6
    assert min(bits(a, b) for a in pictures for b in pictures if a is not b) > 12


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_groups_are_those_of_a_search_over_all_pairs(seed, count):
    random = np.random.RandomState(seed)
    hashes = random.rand(count, 64) < 0.5
    for row in range(1, count):  # most are a few bits from an earlier one
        if random.rand() < 0.7:
            hashes[row] = hashes[random.randint(row)]
            hashes[row, random.permutation(64)[: random.randint(1, 10)]] ^= True
    given_numbers = random.randint(0, 3 * count, count)
    expected = list(range(count))
    for one in range(count):
        for other in range(one):
            near = (hashes[one] != hashes[other]).sum() <= 6 or given_numbers[one] == given_numbers[other]
            if near and expected[one] != expected[other]:
                low, high = sorted((expected[one], expected[other]))
                expected = [low if group == high else group for group in expected]
    np.testing.assert_array_equal(groups_of(hashes, given_numbers.tolist()), expected)


def test_a_fifth_of_the_groups_is_tested_and_no_large_one():
    names = [f"name-{number}" for number in range(3000)]
    groups = np.arange(3000)
    groups[:2000] = 0
    tested = for_test(groups, names)
    assert not tested[:2000].any() and 0.15 < tested[2000:].mean() < 0.25
    np.testing.assert_array_equal(
        for_test(groups, names[:2500] + [n + "x" for n in names[2500:]])[:2500], tested[:2500]
    )

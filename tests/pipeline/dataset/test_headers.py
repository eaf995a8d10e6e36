"""Scans that read only headers: the rows that decoding gives, without the pixels."""

import os
import random

import numpy as np
import pytest

import pipeline.dataset.folder
from pipeline.dataset.folder import scan_folder
from pipeline.dataset.headers import SECOND, is_cut, probe_headers
from pipeline.dataset.images import probe
from pipeline.dataset.open import open_dataset
from pipeline.dataset.shards import scan_shards
from pipeline.dataset.table import COLUMNS, DECODE, HEADERS, NONE, SampleTable, State
from support.odd_images import bad_images, exif, odd_images, plain_images, with_segments
from support.small_datasets import packed, same, write

pytestmark = pytest.mark.filterwarnings(
    "ignore:Corrupt EXIF", "ignore:Image size", "ignore:Tag data"
)  # Pillow's, for odd images
READABLE = plain_images() | odd_images()
BAD = {name: data for name, (data, _) in bad_images().items()}


def by_headers(data, offset=0, length=None):
    descriptor = os.memfd_create("image")
    with os.fdopen(descriptor, "wb", closefd=True) as file:
        file.write(data)
        file.flush()
        return probe_headers(descriptor, offset, length)


@pytest.mark.parametrize("name", READABLE)
def test_a_readable_image_has_the_row_that_decoding_gives(name):
    data = READABLE[name]
    assert by_headers(data) == (len(data), probe(data))


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_quarantined_for_the_same_reason_or_has_a_sound_header(name):
    data = BAD[name]
    length, found = by_headers(data)
    assert length == len(data)
    assert found == probe(data) or (found.state == State.OK and is_cut(np.frombuffer(data, np.uint8)))


def test_a_range_of_a_file_has_the_row_of_its_bytes():
    data = READABLE["camera.jpg"]
    assert by_headers(b"before" + data + b"behind", 6, len(data)) == (len(data), probe(data))
    assert by_headers(data, 0, len(data) + 5)[1] == probe(data)  # the file is cut short, but not this image


def test_headers_longer_than_the_first_read_are_read():
    jpeg = with_segments(READABLE["rgb.jpg"], *[b"x" * 60_000] * 3, b"Exif\0\0" + exif(6))
    for image in (jpeg, with_segments(READABLE["rgb.jpg"], b"x" * 30_000, b"Exif\0\0" + exif(6))):
        assert by_headers(image) == (len(image), probe(image))
        assert probe(image).state == State.OK
    assert len(jpeg) > 2 * SECOND


def test_images_that_decode_after_random_changes_have_the_row_that_decoding_gives():
    choose, names = random.Random(7), [name for name in READABLE if len(READABLE[name]) < 20_000]
    decodable = 0
    for _ in range(400):
        data = bytearray(READABLE[choose.choice(names)])
        for _ in range(choose.choice([1, 1, 3])):
            at = choose.randrange(min(len(data), choose.choice([40, 200, 700])))
            data[at] = choose.choice([0, 255, choose.randrange(256), data[at] ^ 1 << choose.randrange(8)])
        expected = probe(bytes(data))
        if expected.state != State.QUARANTINED:
            decodable += 1
            assert by_headers(bytes(data)) == (len(data), expected)
    assert decodable > 40


@pytest.mark.parametrize("name", ["rgb.jpg", "progressive.jpg", "camera.jpg", "trailing_bytes.jpg", "rgb.png"])
def test_only_a_jpeg_without_its_end_is_cut(name):
    data = np.frombuffer(READABLE[name], np.uint8)
    assert not is_cut(data)
    end = READABLE[name].rfind(b"\xff\xd9")
    assert is_cut(data[: end - 5]) == name.endswith(".jpg")


def test_a_thumbnail_does_not_hide_that_the_end_is_missing():
    thumbnail = READABLE["gray.jpg"]
    data = np.frombuffer(with_segments(READABLE["rgb.jpg"], b"Exif\0\0" + exif(1) + thumbnail), np.uint8)
    assert not is_cut(data)
    assert is_cut(data[:-40])


# ---------------------------------------------------------------------------------------------- scans


def test_a_scan_of_headers_gives_the_table_of_a_scan_that_decodes(tmp_path, monkeypatch):
    root = write(tmp_path / "zoo", READABLE | {"zero.jpg": b"", "text.png": b"text"})
    (root / "gone.png").symlink_to(root / "nothing.png")
    decoded = scan_folder(root, progress=False)
    headers = scan_folder(root, progress=False, check=HEADERS)
    assert (decoded.check, headers.check) == (DECODE, HEADERS)
    assert same(headers, decoded)
    assert headers.quarantine == decoded.quarantine
    monkeypatch.setattr(pipeline.dataset.folder, "CHUNK", 4)  # several threads
    monkeypatch.setattr(pipeline.dataset.folder, "CHUNK_OF_HEADERS", 9)
    assert same(scan_folder(root, progress=False, check=HEADERS), decoded)


def test_a_scan_of_headers_decodes_no_plain_jpeg(tmp_path, monkeypatch):
    root = write(tmp_path / "plain", {name: data for name, data in plain_images().items() if name.endswith(".jpg")})
    monkeypatch.setattr("pipeline.dataset.headers.probe", None)
    with pytest.raises(TypeError):
        scan_folder(write(tmp_path / "odd", {"cmyk.jpg": READABLE["cmyk_adobe.jpg"]}), progress=False, check=HEADERS)
    assert (scan_folder(root, progress=False, check=HEADERS).state == State.OK).all()


def test_shards_are_scanned_by_headers_too(tmp_path):
    packed(tmp_path / "p", max_count=4)
    tars = sorted((tmp_path / "p").glob("*.tar"))
    decoded, headers = (scan_shards(tars, progress=False, check=check) for check in (DECODE, HEADERS))
    assert same(headers, decoded)
    assert headers.check == HEADERS


def test_each_check_has_a_table_of_its_own_in_the_cache(tmp_path, capsys):
    """Else evaluation, which decodes, would change the rows of a run that has read headers."""
    cut = READABLE["rgb.jpg"][:-100]
    root = write(tmp_path / "root", {"a/1.jpg": READABLE["rgb.jpg"], "a/2.jpg": cut})
    tables = {check: open_dataset(root, tmp_path / "cache", 1, False, check=check) for check in (HEADERS, DECODE, NONE)}
    assert {check: table.images for check, table in tables.items()} == {HEADERS: 2, DECODE: 1, NONE: 2}
    assert {check: table.check for check, table in tables.items()} == {check: check for check in tables}
    assert len(list((tmp_path / "cache").glob("*.npz"))) == 2
    again = open_dataset(root, tmp_path / "cache", 1, False, check=HEADERS)
    assert (again.images, again.check) == (2, HEADERS)
    assert capsys.readouterr().err == ""  # no scan again
    stored = sorted(SampleTable.load(file).check for file in (tmp_path / "cache").glob("*.npz"))
    assert stored == [DECODE, HEADERS]


def test_a_scan_of_headers_sees_files_that_change(tmp_path):
    root = write(tmp_path / "root", {"1.jpg": READABLE["rgb.jpg"]})
    assert len(open_dataset(root, tmp_path / "cache", 1, False, check=HEADERS)) == 1
    write(root, {"2.jpg": READABLE["exif6.jpg"]})
    table = open_dataset(root, tmp_path / "cache", 1, False, check=HEADERS)
    assert (table.height[1], table.width[1]) == (67, 45)


def test_every_column_of_a_scan_has_its_dtype(tmp_path):
    table = scan_folder(write(tmp_path, {"1.jpg": READABLE["rgb.jpg"]}), progress=False, check=HEADERS)
    assert {name: getattr(table, name).dtype for name in COLUMNS} == COLUMNS

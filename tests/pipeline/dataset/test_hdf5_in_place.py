"""HDF5 files that h5py wrote, opened in place: the same images whatever their storage, in every process."""

import multiprocessing
import os
import threading

import numpy as np
import pytest

from pipeline.dataset.channels.format import COLOR
from pipeline.dataset.finding.choice import Choice
from pipeline.dataset.inside.names import is_inside
from pipeline.dataset.open import open_dataset
from pipeline.dataset.reader import Reader, ReadError
from pipeline.dataset.table import State
from support.native.images import gray_png, tiles
from support.small_datasets import error_of

h5py = pytest.importorskip("h5py", reason="h5py is not installed")
BANDS = np.stack(tiles(6, channels=5))
COLORS = BANDS[..., :3].astype(np.uint8)
LABELS = [2, 0, 1, 1, 0, 2]
ONE = (1, *BANDS.shape[1:])
STORED = {  # how a file has its images -> whether they are byte ranges
    "contiguous": ({}, True),
    "a chunk an image": ({"chunks": ONE}, True),
    "a chunk of two": ({"chunks": (2, *BANDS.shape[1:])}, False),
    "a part of an image a chunk": ({"chunks": (1, 5, 6, 5)}, False),
    "compressed": ({"chunks": ONE, "compression": "gzip", "shuffle": True}, False),
}


def opened(path, folder, *choice, **settings):
    return open_dataset(path, folder / "tables", 1, False, choice=Choice(*choice, **settings))


def same(table, images):
    reader = Reader(table)
    found = [reader.native(row) if table.pixels.native else reader.decode(row) for row in range(len(table))]
    return len(found) == len(images) and all(map(np.array_equal, found, images))


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("how", STORED)
def test_arrays_are_read_in_place_however_they_are_stored(tmp_path, how, planar):
    settings, ranges = STORED[how]
    images = BANDS.transpose(0, 3, 1, 2) if planar else BANDS
    if planar and "chunks" in settings:
        settings = settings | {"chunks": (settings["chunks"][0], *images.shape[1:])}
        ranges = settings["chunks"][0] == 1 and "compression" not in settings
    with h5py.File(tmp_path / "x.h5", "w", userblock_size=512) as file:
        file.create_dataset("images", data=images, **settings)
        file["labels"] = LABELS
    table = opened(tmp_path / "x.h5", tmp_path)
    assert table.pixels.kind == (True, 5, "uint16") and table.label.tolist() == LABELS
    assert is_inside(table.containers[0]) != ranges
    assert same(table, BANDS)
    again = opened(tmp_path / "x.h5", tmp_path)
    assert again.digest() == table.digest() and same(again, BANDS)


@pytest.mark.parametrize("how", STORED)
def test_color_of_8_bits_is_pictures_and_of_a_number_of_channels_not(tmp_path, how):
    settings, ranges = STORED[how]
    settings = {name: (*value[:3], 3) if name == "chunks" else value for name, value in settings.items()}
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=COLORS, **settings)
    table = opened(tmp_path / "x.h5", tmp_path)
    assert table.pixels == COLOR and (table.state == (State.RAW if ranges else State.OK)).all() and same(table, COLORS)
    table = opened(tmp_path / "x.h5", tmp_path, channels=3)
    assert table.pixels.kind == (True, 3, "uint8") and same(table, COLORS)


@pytest.mark.parametrize("shape", ["gray", "gray, 1 channel", "planes", "alpha"])
def test_other_pictures_of_8_bits(tmp_path, shape):
    alpha = np.concatenate([COLORS, 255 - COLORS[..., :1]], axis=3)
    gray = COLORS[..., 0]
    stored = {
        "gray": gray, "gray, 1 channel": gray[..., None], "planes": COLORS.transpose(0, 3, 1, 2), "alpha": alpha,
    }[shape]  # fmt: skip
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = stored
    wanted = gray[..., None].repeat(3, axis=3) if "gray" in shape else COLORS
    table = opened(tmp_path / "x.h5", tmp_path)
    assert table.pixels == COLOR and same(table, wanted)
    channels = {"planes": 3, "alpha": 4}.get(shape, 1)
    table = opened(tmp_path / "x.h5", tmp_path, channels=channels)
    assert same(table, {1: gray[..., None], 3: COLORS, 4: alpha}[channels])


@pytest.mark.parametrize("how", ["contiguous", "compressed"])
def test_a_group_for_each_class_holds_arrays_or_files(tmp_path, how):
    names = [f"{('cat', 'dog', 'owl')[label]}/{row}" for row, label in enumerate(LABELS)]
    settings = {"compression": "gzip"} if how == "compressed" else {}
    with h5py.File(tmp_path / "arrays.h5", "w") as file, h5py.File(tmp_path / "files.h5", "w") as other:
        for row, name in enumerate(names):
            file.create_dataset(name, data=BANDS[row], **settings)
            data = np.frombuffer(gray_png(BANDS[row, :, :, 0]), np.uint8)
            other.create_dataset(f"{name}.png", data=data, **settings)
    order = np.argsort(names)
    for stem, images in (("arrays", BANDS), ("files", BANDS[..., :1])):
        table = opened(tmp_path / f"{stem}.h5", tmp_path)
        assert table.classes == ("cat", "dog", "owl") and table.label.tolist() == [LABELS[row] for row in order]
        assert is_inside(table.containers[0]) == (how == "compressed") and same(table, images[order])
        assert table.name(1).startswith(f"{stem}.h5") and (
            how == "contiguous" or f"//{names[order[1]]}" in table.name(1)
        )


def test_a_folder_of_files_and_two_splits(tmp_path):
    for part, rows in (("train-0", (0, 1)), ("train-1", (2, 3)), ("val", (4, 5))):
        with h5py.File(tmp_path / f"{part}.h5", "w") as file:
            file.create_dataset("images", data=BANDS[list(rows)], compression="gzip")
            file["labels"] = [LABELS[row] for row in rows]
    table = opened(tmp_path / "train-*.h5", tmp_path)
    assert table.label.tolist() == LABELS[:4] and same(table, BANDS[:4])


def test_values_that_are_no_numbers_are_in_quarantine_by_name(tmp_path):
    images = BANDS.astype(np.float32)
    images[3, 0, 0, 0] = np.nan
    for stem, settings in (("ranges", {}), ("inside", {"compression": "gzip"})):
        with h5py.File(tmp_path / f"{stem}.h5", "w") as file:
            file.create_dataset("x", data=images, **settings)
        table = opened(tmp_path / f"{stem}.h5", tmp_path)
        assert table.quarantine == {3: "infinite or NaN values"} and table.pixels.dtype == "float32"
    assert table.name(3) == "inside.h5//x/3"


def _row_of(table, row, queue):
    queue.put(Reader(table).native(row))


def test_forked_processes_and_threads_read_the_same(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=BANDS, chunks=ONE, compression="gzip")
    table = opened(tmp_path / "x.h5", tmp_path)
    reader, context = Reader(table), multiprocessing.get_context("fork")
    stop = threading.Event()

    def read_on():
        while not stop.is_set():
            reader.read(range(6))

    threads = [threading.Thread(target=read_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for row in range(4):
            queue = context.SimpleQueue()
            process = context.Process(target=_row_of, args=(table, row, queue))
            process.start()
            assert np.array_equal(queue.get(), BANDS[row])
            process.join()
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_file_that_changes_is_scanned_again_and_a_running_reader_notices(tmp_path):
    path = tmp_path / "x.h5"
    for count in (6, 4):
        with h5py.File(tmp_path / "new", "w") as file:
            file.create_dataset("x", data=BANDS[:count], compression="gzip")
        os.replace(tmp_path / "new", path)
        if count == 6:
            reader = Reader(opened(path, tmp_path))
            assert np.array_equal(reader.native(5), BANDS[5])
    with pytest.raises(ReadError, match=r"x\.h5//x/5"):
        reader.native(5)
    assert same(opened(path, tmp_path), BANDS[:4])
    os.remove(path)
    with pytest.raises(ReadError):
        reader.native(1)


def test_what_is_not_clear_or_damaged_is_one_line(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["left"], file["right"] = BANDS, BANDS
    assert "several images (left, right); choose with data.image=left" in error_of(opened, tmp_path / "x.h5", tmp_path)
    table = opened(tmp_path / "x.h5", tmp_path, "right")
    assert same(table, BANDS) and table.left_out == {"dataset left": 6}
    for labels in (LABELS[:5], np.eye(3)[LABELS]):  # a label is missing; one of three is 1
        with h5py.File(tmp_path / "z.h5", "w") as file:
            file["images"], file["labels"] = BANDS, labels
        found = (
            f"the dataset labels is {np.array(labels).dtype}{[*np.shape(labels)]}, and not a class for each of 6 images"
        )
        assert f"z.h5: {found}; choose another with data.label" in error_of(opened, tmp_path / "z.h5", tmp_path)
        assert opened(tmp_path / "z.h5", tmp_path, None, "none").left_out == {"dataset labels": len(labels)}
    data = (tmp_path / "x.h5").read_bytes()
    (tmp_path / "y.h5").write_bytes(data[:3000])
    assert "y.h5: no HDF5 file, or damaged" in error_of(opened, tmp_path / "y.h5", tmp_path)

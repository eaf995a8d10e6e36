"""Several sources of images with their own channels as one dataset, stored in different ways."""

from config.recipe import load_config
from pipeline.dataset.finding.choice import Choice
from pipeline.dataset.open import open_splits
from pipeline.dataset.reader import Reader
from support.conversions import converted
from support.native.images import tiles, write_tiles
from support.small_datasets import error_of

WHOLE = tiles(12, 24, channels=9)
LOW = [tile[:5] for tile in WHOLE[6:]]  # 5 x 24, 9 channels: by itself auto would take the rows for channels


def joint(tmp_path, *paths):
    settings = [f"data.path=[{','.join(map(str, paths))}]", f"data.cache={tmp_path}/tables"]
    return open_splits(load_config(["config/folder.yaml", *settings]).data, progress=False)[0]


def test_a_folder_and_shards_that_conversion_wrote_are_one_dataset(tmp_path):
    folder, low = write_tiles(tmp_path / "folder", WHOLE[:6]), write_tiles(tmp_path / "low", LOW)
    converted(low, tmp_path / "shards", "wds", choice=Choice(layout="hwc"))
    table = joint(tmp_path, folder, tmp_path / "shards")
    assert str(table.pixels) == "9 channels of uint16" and table.classes == ("dark", "light")
    reader = Reader(table)
    found = sorted(reader.native(row).tobytes() for row in range(12))
    assert found == sorted(image.tobytes() for image in (*WHOLE[:6], *LOW))


def test_arrays_of_a_beton_go_with_such_a_beton_alone(tmp_path):
    folder = write_tiles(tmp_path / "folder", WHOLE[:6])
    for name, images in (("one", WHOLE[:4]), ("two", WHOLE[4:])):
        converted(write_tiles(tmp_path / name, images), tmp_path / f"{name}.beton", "beton")
    line = error_of(joint, tmp_path, folder, tmp_path / "one.beton")
    assert f"its arrays are not stored as those of {folder}: " in line and line.endswith("; convert one of the two")
    assert len(joint(tmp_path, tmp_path / "one.beton", tmp_path / "two.beton")) == 12


def test_sources_of_different_kinds_are_one_line(tmp_path):
    one, two = (write_tiles(tmp_path / str(count), tiles(4, channels=count)) for count in (3, 4))
    kinds = f"holds images of 4 channels of uint16, and {one} of 3 channels of uint16"
    assert error_of(joint, tmp_path, one, two).endswith(f"{kinds}; give paths of one kind, or data.channels for all")

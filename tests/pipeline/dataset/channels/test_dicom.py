"""DICOM files that pydicom wrote: values of the modality at full depth, frames as images."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.channels.decode import decode_native, is_deep
from pipeline.dataset.channels.dicom import is_dicom, read_frame
from pipeline.dataset.images import BadImage
from pipeline.dataset.open import open_dataset
from pipeline.dataset.reader import Reader, ReadError
from support.conversions import converted, target
from support.small_datasets import write

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
dicom = pytest.importorskip("support.native.dicoms", reason="pydicom is not installed").dicom
VALUES = np.random.default_rng(0).integers(0, 4096, (3, 20, 30)).astype(np.uint16)


def test_stored_integers_without_a_rescale_are_kept():
    data = dicom(VALUES[0])
    assert is_dicom(data) and is_deep(data)
    array = decode_native(data)
    assert array.dtype == np.uint16 and array.shape == (20, 30, 1)
    np.testing.assert_array_equal(array[..., 0], VALUES[0])


def test_a_rescale_gives_the_values_of_the_modality():
    signed = VALUES[0].astype(np.int16) - 1000
    array = decode_native(dicom(signed, bits=16, RescaleSlope="0.5", RescaleIntercept="-1024"))
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array[..., 0], signed * 0.5 - 1024)


def test_monochrome1_is_inverted_within_its_stored_bits():
    np.testing.assert_array_equal(decode_native(dicom(VALUES[0], "MONOCHROME1"))[..., 0], 4095 - VALUES[0])
    signed = VALUES[0].astype(np.int16) - 2048
    np.testing.assert_array_equal(decode_native(dicom(signed, "MONOCHROME1"))[..., 0], -1 - signed)
    array = decode_native(dicom(VALUES[0], "MONOCHROME1", RescaleSlope="2", RescaleIntercept="-10"))
    rescaled = VALUES[0].astype(float) * 2 - 10
    np.testing.assert_array_equal(array[..., 0], -10 + (4095 * 2 - 10) - rescaled)  # lowest + highest - value


def test_color_is_kept_and_what_has_no_meaning_is_named():
    color = VALUES[..., :3][:, :, :3].astype(np.uint8).reshape(3, 20, 3)
    np.testing.assert_array_equal(decode_native(dicom(color, "RGB", bits=8)), color)
    with pytest.raises(BadImage, match="a DICOM of PALETTE COLOR"):
        decode_native(dicom(VALUES[0], "PALETTE COLOR"))
    with pytest.raises(BadImage, match="a DICOM of 3 frames, which are images of their own in folders"):
        decode_native(dicom(VALUES))
    with pytest.raises(BadImage, match="too large"):
        decode_native(dicom(VALUES[0]), most=500)


def test_damaged_files_end_with_a_reason():
    noise, whole = np.random.default_rng(0), dicom(VALUES[0])
    for _ in range(60):
        data = bytearray(whole)
        for place in noise.integers(132, 600, 3):
            data[place] = noise.integers(256)
        try:
            decode_native(bytes(data[: noise.integers(140, len(data))]))
        except BadImage as error:
            assert error.reason and "\n" not in error.reason


def test_a_folder_of_dicom_trains_in_place_with_and_without_extensions(tmp_path):
    folder = write(tmp_path / "series", {"a/1.dcm": dicom(VALUES[0]), "b/IM2": dicom(VALUES[1])})
    table = open_dataset(folder, tmp_path / "tables", 1, False)
    assert table.pixels.kind == (True, 1, "uint16") and table.classes == ("a", "b")
    np.testing.assert_array_equal(Reader(table).native(1)[..., 0], VALUES[1])


def groups(slope, intercept):
    """A sequence of functional groups with a rescale."""
    values, group = pydicom.Dataset(), pydicom.Dataset()
    values.RescaleSlope, values.RescaleIntercept = str(slope), str(intercept)
    group.PixelValueTransformationSequence = [values]
    return group


def test_each_frame_has_the_rescale_of_its_functional_groups(tmp_path):
    per_frame = [groups(1, -10), groups(2, 0), groups(1, 0)]
    for name, tags, rescales in (
        ("per_frame", {"PerFrameFunctionalGroupsSequence": per_frame}, [(1, -10), (2, 0), (1, 0)]),
        ("shared", {"SharedFunctionalGroupsSequence": [groups(0.5, 3)]}, [(0.5, 3)] * 3),
        ("file", {"RescaleSlope": "4", "RescaleIntercept": "1"}, [(4, 1)] * 3),
    ):
        (tmp_path / name).write_bytes(dicom(VALUES, **tags))
        for number, (slope, intercept) in enumerate(rescales):
            image = decode_native(read_frame(str(tmp_path / name), number))[..., 0]
            np.testing.assert_array_equal(image, VALUES[number].astype(float) * slope + intercept)


def test_frames_of_a_folder_train_in_place_and_are_named(tmp_path):
    color = VALUES.astype(np.uint8).reshape(3, 10, 20, 3)
    files = {
        "a/one.dcm": dicom(VALUES[0]),
        "b/three.dcm": dicom(VALUES),
        "b/IM2": dicom(VALUES[:2]),
        "c/us.dcm": dicom(color, "RGB", 8),
    }
    folder = write(tmp_path / "series", files)
    for _ in range(2):  # the second time from the cache
        table = open_dataset(folder, tmp_path / "tables", 1, False)
        assert table.loose and table.files() == ["a/one.dcm", "b/IM2", "b/three.dcm", "c/us.dcm"]
        assert table.label.tolist() == [0, 1, 1, 1, 1, 1, 2, 2, 2] and table.pixels.kind == (True, 1, "uint16")
        reader = Reader(table)
        for row, image in enumerate([VALUES[0], *VALUES[:2], *VALUES]):
            np.testing.assert_array_equal(reader.native(row)[..., 0], image)
        assert table.quarantine == dict.fromkeys((6, 7, 8), "of another kind: 3 channels of uint8")
        assert table.name(5) == "b/three.dcm//frame2"
    table = open_dataset(folder / "c", tmp_path / "tables", 1, False)
    for row in range(3):
        np.testing.assert_array_equal(Reader(table).native(row), color[row])
    (folder / "b/three.dcm").write_bytes(dicom(VALUES[:1]))
    with pytest.raises(ReadError, match=r"three\.dcm//frame2.*changed since the table was made \(1 frames\)"):
        reader.native(5)


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEGBaseline8Bit"])
def test_compressed_frames_by_the_decoders_of_pydicom(tmp_path, syntax):
    gray = np.add.outer(np.arange(3) * 40, np.add.outer(np.arange(20) * 4, np.arange(30) * 3)).astype(np.uint8)
    data = dicom(gray, bits=8)
    if syntax == "RLELossless":
        file = pydicom.dcmread(io.BytesIO(data))
        file.compress(pydicom.uid.RLELossless)
    else:
        file = pydicom.dcmread(io.BytesIO(data))
        frames = [jpeg(frame) for frame in gray]
        file.PixelData = pydicom.encaps.encapsulate(frames)
        file["PixelData"].VR = "OB"
        file.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    pydicom.dcmwrite(tmp_path / "x.dcm", file, enforce_file_format=True)
    table = open_dataset(tmp_path, tmp_path / "tables", 1, False)
    wanted = gray if syntax == "RLELossless" else [np.asarray(Image.open(io.BytesIO(frame))) for frame in frames]
    assert len(table) == 3 and table.pixels.kind == (True, 1, "uint8")
    for row, image in enumerate(wanted):
        np.testing.assert_array_equal(Reader(table).native(row)[..., 0], image)


def jpeg(frame):
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def test_conversion_makes_an_image_of_each_frame(tmp_path):
    folder = write(tmp_path / "series", {"a/one.dcm": dicom(VALUES[0]), "b/three.dcm": dicom(VALUES)})
    report = converted(folder, target(tmp_path, "beton"), "beton", seed=None)
    assert (report.kind, report.written, report.quarantined) == ("folder", 4, {})
    table = open_dataset(tmp_path / "x.beton", tmp_path / "tables", 1, False)
    assert table.label.tolist() == [0, 1, 1, 1] and table.classes == ("a", "b")
    for row, image in enumerate([VALUES[0], *VALUES]):
        np.testing.assert_array_equal(Reader(table).native(row)[..., 0], image)

"""DICOM files that pydicom wrote: values of the modality at full depth, frames as images."""

import io

import numpy as np
import pytest

from pipeline.dataset.channels.decode import decode_native, is_deep
from pipeline.dataset.channels.dicom import frame_count, is_dicom
from pipeline.dataset.images import BadImage
from pipeline.dataset.open import open_dataset
from pipeline.dataset.reader import Reader
from support.conversions import converted, target
from support.small_datasets import write

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
VALUES = np.random.default_rng(0).integers(0, 4096, (3, 20, 30)).astype(np.uint16)


def dicom(pixels, kind="MONOCHROME2", bits=12, **tags):
    """The bytes of an uncompressed DICOM of (H, W), (frames, H, W) or (H, W, 3)."""
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = pydicom.uid.CTImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = pydicom.uid.generate_uid()
    color = kind == "RGB"
    file.Rows, file.Columns = pixels.shape[-3:-1] if color else pixels.shape[-2:]
    file.PhotometricInterpretation, file.SamplesPerPixel = kind, 3 if color else 1
    if color:
        file.PlanarConfiguration = 0
    elif pixels.ndim == 3:
        file.NumberOfFrames = len(pixels)
    file.BitsAllocated, file.BitsStored, file.HighBit = 8 * pixels.itemsize, bits, bits - 1
    file.PixelRepresentation = int(pixels.dtype.kind == "i")
    file.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(file, name, value)
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, file, enforce_file_format=True)
    return stream.getvalue()


def test_stored_integers_without_a_rescale_are_kept():
    data = dicom(VALUES[0])
    assert is_dicom(data) and is_deep(data) and frame_count(data) == 1
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
    with pytest.raises(BadImage, match="a DICOM of 3 frames, which make convert takes apart in folders"):
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


def test_conversion_makes_an_image_of_each_frame(tmp_path):
    folder = write(tmp_path / "series", {"a/one.dcm": dicom(VALUES[0]), "b/three.dcm": dicom(VALUES)})
    report = converted(folder, target(tmp_path, "beton"), "beton", seed=None)
    assert (report.kind, report.written, report.quarantined) == ("dicom", 4, {})
    table = open_dataset(tmp_path / "x.beton", tmp_path / "tables", 1, False)
    assert table.label.tolist() == [0, 1, 1, 1] and table.classes == ("a", "b")
    for row, image in enumerate([VALUES[0], *VALUES]):
        np.testing.assert_array_equal(Reader(table).native(row)[..., 0], image)

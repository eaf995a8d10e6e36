"""DICOM files, written by pydicom."""

import io

import pydicom


def dicom(pixels, kind="MONOCHROME2", bits=12, **tags):
    """The bytes of an uncompressed DICOM of (H, W), (frames, H, W) or (H, W, 3)."""
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = pydicom.uid.CTImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = pydicom.uid.generate_uid()
    color = kind == "RGB"
    file.Rows, file.Columns = pixels.shape[-3:-1] if color else pixels.shape[-2:]
    if pixels.ndim > 2 + color:
        file.NumberOfFrames = len(pixels)
    file.PhotometricInterpretation, file.SamplesPerPixel = kind, 3 if color else 1
    if color:
        file.PlanarConfiguration = 0
    file.BitsAllocated, file.BitsStored, file.HighBit = 8 * pixels.itemsize, bits, bits - 1
    file.PixelRepresentation = int(pixels.dtype.kind == "i")
    file.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(file, name, value)
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, file, enforce_file_format=True)
    return stream.getvalue()

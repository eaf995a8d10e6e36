"""Scaled decoding: crops from a JPEG's planes or from shrunk pixels are within a level of those from all pixels."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipeline.crops import View
from pipeline.dataset.images import decode
from pipeline.draw import draw
from pipeline.kernel.decode import _library
from pipeline.kernel.kernel import Kernel
from support.kernel_runs import PLAIN, SWAV, execute, jpeg, one_view, one_window
from support.photos import photographs

EXACT = replace(PLAIN, decode="exact")
SAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2, "gray": 3, "4:4:0": 4, "4:1:1": 5}  # TurboJPEG's numbers


def photo(height, width, index=0):
    """A part of a photograph, enlarged to this size if necessary."""
    image = Image.fromarray(photographs()[index])
    scale = max(height / image.height, width / image.width, 1)
    box = (0, 0, width / scale, height / scale)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))


def sampled(image, sampling):
    """JPEG bytes with this chroma sampling, by TurboJPEG: Pillow writes only three kinds."""
    library = _library()
    library.tjInitCompress.restype = ctypes.c_void_p
    handle, out, length = ctypes.c_void_p(library.tjInitCompress()), ctypes.c_void_p(), ctypes.c_ulong()
    image = np.ascontiguousarray(image)
    height, width = image.shape[:2]
    assert not library.tjCompress2(
        handle, image.ctypes.data_as(ctypes.c_void_p), width, 0, height, 0,
        ctypes.byref(out), ctypes.byref(length), SAMPLINGS[sampling], 92, 0,
    )  # fmt: skip
    data = np.frombuffer(ctypes.string_at(out, length.value), np.uint8)
    library.tjFree(out)
    library.tjDestroy(handle)
    return data


def differences(images, crops, seed=0):
    """Absolute differences of scaled to exact uint8 crops, a list with an array for each resolution."""
    height, width = np.array([decode(image.tobytes()).shape[:2] for image in images]).T
    drawn = draw(crops, seed, 0, np.arange(len(images)), height, width)
    made = []
    for mode in ("scaled", "exact"):
        outputs, status = execute(replace(crops, decode=mode), images, drawn, (height, width), dtype="uint8")
        assert not status.any()
        made.append([output.astype(int) for output in outputs])
    return [np.abs(one - other) for one, other in zip(*made, strict=True)]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("shape", "limit"), [((251, 333), 0.5), ((1003, 1337), 1.0)])
def test_every_chroma_sampling_gives_the_crops_of_all_pixels(sampling, shape, limit):
    """Enlarged photographs, which are shrunk to the size of their crops: the least alike; see `test_kernel_parity.py`
    for larger ones."""
    images = [sampled(photo(*shape, index), sampling) for index in range(3)]
    for difference in differences(images, PLAIN):
        assert difference.mean() < limit


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("sampling", "shape", "limit"), [(2, (251, 333), 0.5), (1, (1003, 1337), 1.0)])
def test_what_exif_turns_is_turned_in_the_kernel(orientation, sampling, shape, limit):
    """Exact: the very crops of Pillow's upright pixels. Scaled: as close to them as if nothing were turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = jpeg(photo(*shape, 3), exif=exif, subsampling=sampling)
    pixels = decode(image.tobytes())
    assert pixels.shape[:2] == (shape if orientation < 5 else shape[::-1])
    drawn = draw(PLAIN, 0, 0, np.arange(1), *np.array([pixels.shape[:2]]).T)
    size = tuple(np.array([pixels.shape[:2]]).T)
    of_pixels, _ = execute(EXACT, [pixels], drawn, dtype="uint8")
    exact, status = execute(EXACT, [image], drawn, size, dtype="uint8")
    assert status.tolist() == [0]
    assert all(map(np.array_equal, of_pixels, exact))
    scaled, status = execute(PLAIN, [image], drawn, size, dtype="uint8")
    assert status.tolist() == [0]
    for one, other in zip(scaled, exact, strict=True):
        assert np.abs(one.astype(int) - other).mean() < limit


def test_a_progressive_jpeg_is_shrunk_too():
    images = [jpeg(photo(1003, 1337, index), progressive=True) for index in range(2)]
    assert max(difference.mean() for difference in differences(images, PLAIN)) < 1.0


def test_a_gray_jpeg_gives_gray_crops():
    image = jpeg(photo(300, 400)[..., 0])
    drawn = draw(PLAIN, 0, 0, np.arange(1), np.array([300]), np.array([400]))
    for output in execute(PLAIN, [image], drawn, (np.array([300]), np.array([400])), dtype="uint8")[0]:
        np.testing.assert_array_equal(output[..., 0], output[..., 1])
        np.testing.assert_array_equal(output[..., 0], output[..., 2])


def test_a_jpeg_of_rgb_components_is_decoded_exactly():
    image = jpeg(photo(300, 400), keep_rgb=True)
    pixels = decode(image.tobytes())
    drawn = draw(PLAIN, 0, 0, np.arange(1), np.array([300]), np.array([400]))
    crops, _ = execute(PLAIN, [image], drawn, (np.array([300]), np.array([400])), dtype="uint8")
    expected, _ = execute(EXACT, [pixels], drawn, dtype="uint8")
    assert all(map(np.array_equal, crops, expected))


@pytest.mark.parametrize("window", [(0, 0, 1, 1), (250, 332, 1, 1), (249, 0, 2, 333), (0, 331, 251, 2)])
def test_windows_at_the_edges_of_planes_stay_inside(window):
    image = jpeg(photo(251, 333))
    crops, size = one_view(48), (np.array([251]), np.array([333]))
    made = [
        execute(replace(crops, decode=mode), [image], one_window(window), size, dtype="uint8")[0][0].astype(int)
        for mode in ("scaled", "exact")
    ]
    assert np.abs(made[0] - made[1]).mean() < 6  # chroma of a window of a pixel's height comes from half a sample


def test_scaled_crops_do_not_depend_on_threads_or_batches():
    images = [sampled(photo(600 + 100 * index, 900), "4:2:0") for index in range(5)]
    height, width = np.array([(600 + 100 * index, 900) for index in range(5)]).T
    drawn = draw(SWAV, 1, 0, np.arange(5), height, width)
    reference, _ = execute(SWAV, images, drawn, (height, width), threads=1)
    outputs, _ = execute(SWAV, images, drawn, (height, width), threads=3)
    assert all(map(np.array_equal, reference, outputs))
    single = draw(SWAV, 1, 0, np.array([4]), height[[4]], width[[4]])
    outputs, _ = execute(SWAV, images[4:], single, (height[[4]], width[[4]]))
    assert all(map(np.array_equal, [output[:, [4]] for output in reference], outputs))


def test_memory_is_that_of_the_shrunk_image():
    image = jpeg(photo(1200, 1600))
    crops = replace(PLAIN, views=(View(96, (0.9, 1.0)),))
    size = np.array([1200]), np.array([1600])
    drawn = draw(crops, 0, 0, np.arange(1), *size)
    sizes = []
    for mode in ("scaled", "exact"):
        kernel = Kernel(replace(crops, decode=mode), 1, "uint8")
        assert not kernel.run([image], np.array([True]), *size, drawn, kernel.buffers(1)).any()
        sizes.append(kernel.capacity[0])
        kernel.close()
    assert sizes[1] >= 3 * 1200 * 1600 and sizes[0] < sizes[1] / 50

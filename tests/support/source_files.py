"""Sources of images for tests of conversion, and the images that conversion finds in them."""

import io
import tarfile

from pipeline.conversion.sources import open_source
from pipeline.dataset.idx import stored_png
from support.odd_images import scene


def opened(path, tmp_path, **options):
    return open_source(path, tmp_path / "spool", progress=False, **options)


def images_of(entries):
    """Key -> (bytes, class name or number)."""
    data = entries.read(range(len(entries)))
    labels = [entries.classes[label] if entries.classes and label >= 0 else int(label) for label in entries.label]
    return dict(zip(entries.keys, zip(data, labels, strict=True), strict=True))


def image(number):
    return stored_png(scene(10 + number, 20))


def tar(path, members, style=tarfile.GNU_FORMAT):
    """A tar of (name, bytes) or TarInfo members."""
    with tarfile.open(path, "w", format=style) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path

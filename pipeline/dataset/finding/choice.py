"""Which of the images and labels of a sample are taken, where it has several: columns, fields, files with one key."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pipeline.dataset.channels.format import PixelFormat
from pipeline.dataset.images import MAX_PIXELS
from pipeline.dataset.table import DatasetError

ALL, NONE = "all", "none"
PAGES = "images"  # the value of `data.pages` by which each page is one
IMAGES = ("image", "img", "image/encoded")
LABELS = (
    "label", "labels", "class_label", "target", "targets", "class", "class_id", "class_idx", "cls", "category", "y",
    "fine_label", "image/class/label",
)  # fmt: skip
NUMBERS = ("index", "idx", "id", "row", "number", "sample", "sample_id", "image_id", "key")  # that are no labels


class Choice(NamedTuple):
    """The user's choice, None without one. image: `data.image`; label: `data.label`, 'none' for no labels.

    channels: `data.channels`, 'auto', 'rgb' or a number; layout: `data.layout`, 'auto', 'hwc' or 'chw'.
    max_pixels: `data.max_pixels`. bands: `data.bands`, words with commas between. pages: `data.pages`, 'channels' or
    'images'. images_in: a folder into which the paths of a table may lead.
    """

    image: str | None = None
    label: str | None = None
    channels: str | int = "auto"
    layout: str = "auto"
    max_pixels: int = MAX_PIXELS
    bands: str | None = None
    pages: str = "channels"
    images_in: str | None = None

    @property
    def words(self) -> list[str]:
        """The words of `bands`."""
        return [word.strip() for word in (self.bands or "").split(",")] if self.bands else []


NOT_CHOSEN = Choice()


def channels_of(text: str) -> str | int:
    """The value of an option --channels. Raises DatasetError."""
    if text in ("auto", "rgb"):
        return text
    if not re.fullmatch("[0-9]{1,6}", text) or int(text) < 1:
        raise DatasetError(f"--channels={text}: expected auto, rgb or a number from 1 on")
    return int(text)


def scanned_pixels(choice: Choice) -> int:
    """The most pixels of an image that a scan reads. A lower `max_pixels` needs no other scan: tables know sizes."""
    return max(MAX_PIXELS, choice.max_pixels)


def takes_arrays(choice: Choice, pictures: bool) -> bool:
    """Whether .npy and .npz files are images: where there are no pictures, and where `data.image` names them."""
    if choice.channels == "rgb":
        return False
    named = {suffix.strip().lower().rpartition(".")[2] for suffix in (choice.image or "").split(",")}
    return not pictures or bool(named & {"npy", "npz"})


def split_key(name: str) -> tuple[str, str]:
    """`folder/key.suffix` -> (`folder/key`, `suffix`); as in WebDataset, the suffix starts at the first dot."""
    dot = name.find(".", name.rfind("/") + 1)
    return (name, "") if dot < 0 else (name[:dot], name[dot + 1 :])


def check_choice(kind: str, choice: Choice) -> None:
    """Raise DatasetError for a choice that a source of this kind (of `find_source`) does not offer."""
    if kind in ("table", "idx", "cifar", "recordio", "lmdb") and choice.image not in (None, ALL):
        raise DatasetError(f"data.image={choice.image}: the samples here have one image each; leave it out")
    if kind in ("table", "idx", "cifar", "folder", "recordio", "lmdb") and choice.label not in (None, NONE):
        raise DatasetError(f"data.label={choice.label}: the labels here have no name; leave it out, or give none")


def check_channels(kind: str, choice: Choice) -> None:
    """Raise DatasetError for a number of channels where the source has pictures in 8-bit RGB only."""
    if kind not in ("folder", "tar", "beton", "hdf5", "table") and choice.channels not in ("auto", "rgb"):
        problem = "images keep their own channels in folders, tars, .beton and HDF5 files only"
        raise DatasetError(f"data.channels={choice.channels}: {problem}; leave it out, or unpack the images")


def check_bands(kind: str, choice: Choice) -> None:
    """Raise DatasetError for bands that are no words, and where images are not several files."""
    if choice.bands is None:
        return
    lowered = [word.lower() for word in choice.words]
    if len(lowered) < 2 or len(set(lowered)) < len(lowered) or not all(map(str.isalnum, lowered)):
        expected = "two or more words of the files' names, each once, e.g. B02,B03,B08"
        raise DatasetError(f"data.bands={choice.bands}: expected {expected}")
    if kind not in ("folder", "tar"):
        raise DatasetError(f"data.bands={choice.bands}: files of one band are read in folders and tars only")
    if choice.channels == "rgb":
        raise DatasetError(f"data.bands={choice.bands}: data.channels=rgb has no bands; leave one of the two out")


def check_pages(kind: str, choice: Choice) -> None:
    """Raise DatasetError for pages that are images where they cannot be."""
    if choice.pages == PAGES and kind != "folder":
        raise DatasetError("data.pages=images: pages are images in folders only; unpack the files, or leave it out")
    if choice.pages == PAGES and choice.bands:
        raise DatasetError(f"data.pages=images: not with data.bands={choice.bands}; leave one of the two out")


def check_pixels(pixels: PixelFormat, choice: Choice) -> None:
    """Raise DatasetError for a table of another number of channels than the chosen one."""
    asked = {"auto": True, "rgb": not pixels.native}.get(str(choice.channels))
    if not (pixels.native and pixels.channels == choice.channels if asked is None else asked):
        raise DatasetError(f"data.channels={choice.channels}: its table has images of {pixels}; leave it out")


def chosen_words(choice: Choice) -> str:
    """A text that is different for each choice, '' without one."""
    words = [f"Choice(image={choice.image!r}, label={choice.label!r})"] if choice[:2] != NOT_CHOSEN[:2] else []
    words += [f"bands {choice.bands}"] if choice.bands else []
    words += ["each page"] if choice.pages == PAGES else []
    words += [f"{choice[2:4]}"] if choice[2:4] != NOT_CHOSEN[2:4] else []
    return " ".join(words + ([f"{scanned_pixels(choice)} pixels"] if choice.max_pixels > MAX_PIXELS else []))


def wanted_suffixes(choice: Choice, known: Iterable[str]) -> list[str]:
    """The suffixes of file names that `data.image=jpg,seg.png` asks for. Raises DatasetError for one that no image has.

    known: the suffixes of the images, in small letters.
    """
    wanted = sorted({suffix.strip().lower().removeprefix(".") for suffix in (choice.image or "").split(",")})
    known = sorted(known)
    for suffix in wanted:
        if suffix not in known:
            shown = ", ".join(known[:8])
            raise DatasetError(f"data.image={choice.image}: no image ends in .{suffix}; there are {shown}")
    return wanted


def several_images(groups: Iterable[Sequence[str]]) -> list[str]:
    """The suffixes of images that share a key with another image of their group (a tar), most frequent first; [] if
    they are not kinds of images but parts of names.

    Kinds (`jpg`, `seg.png`) occur in many samples; parts of a name (`cat.0.jpg`, `cat.1.jpg`, ...) are many to a key.
    """
    doubled: Counter[str] = Counter()
    keys = 0
    for names in groups:
        count = Counter(split_key(name)[0] for name in names)
        shared = {key for key, images in count.items() if images > 1}
        keys += len(shared)
        doubled.update(suffix.lower() for key, suffix in map(split_key, names) if key in shared)
    worded = any(any(map(str.isalpha, suffix.rpartition(".")[0])) for suffix in doubled)
    beside = worded and any("." not in suffix for suffix in doubled)  # k.seg.png beside k.jpg, be it only one
    return [suffix for suffix, _ in doubled.most_common()] if beside or len(doubled) < keys else []


def chosen_image(fields: Sequence[str], choice: Choice) -> str:
    """The field of images: the chosen one, the only one, or the one called 'image' or 'img'. Raises DatasetError."""
    if choice.image:
        if choice.image not in fields:
            raise DatasetError(f"data.image={choice.image}: no images of this name; there are {', '.join(fields)}")
        return choice.image
    usual = [field for field in fields if field.lower() in IMAGES]
    candidates = fields if len(fields) == 1 else usual
    if len(candidates) != 1:
        raise DatasetError(f"each sample has several images ({', '.join(fields)}); choose with data.image={fields[0]}")
    return candidates[0]


def chosen_label(fields: Sequence[str], choice: Choice, named: Iterable[str] = (), guess: bool = False) -> str:
    """The field of labels among `fields`, those that could be one; '' for none.

    It is the chosen one, else the one with a usual name, else the one with class names (`named`). guess: whether other
    fields, unless they are called a number, make it unclear. Raises DatasetError where it is unclear.
    """
    if choice.label == NONE:
        return ""
    if choice.label:
        if choice.label not in fields:
            known = f"there are {', '.join(fields)}" if fields else "there are none"
            raise DatasetError(f"data.label={choice.label}: no labels of this name; {known}")
        return choice.label
    usual = [field for field in fields if field.lower() in LABELS]
    others = [field for field in fields if guess and field.lower() not in NUMBERS]
    candidates = usual or list(named) or others
    if len(candidates) > 1 or (candidates and candidates == others and not usual):
        problem = f"it is not clear which field holds the labels ({', '.join(candidates)})"
        raise DatasetError(f"{problem}; choose with data.label={candidates[0]}, or data.label=none")
    return candidates[0] if candidates else ""

"""Refuses folders that do not say which of their files are the images or what their classes are."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.dataset.finding.choice import ALL, NONE, Choice, split_key
from pipeline.dataset.finding.layout import SHORT, UNLABELED, WORD, split_of
from pipeline.dataset.finding.mixed import splits_beside, splits_of_images
from pipeline.dataset.folder import Listing
from pipeline.dataset.table import DatasetError

MASKS = ("mask", "seg", "segmentation", "segmentationclass", "segmentationobject", "annotation", "label", "depth", "gt",
         "groundtruth", "trimap", "matte", "alpha")  # fmt: skip
PHOTOS = ("image", "img", "jpegimage", "rgb", "photo", "picture", "input")
AROUND = (*PHOTOS, "data", "dataset", "all", "raw", "file", "unlabeled", "unlabelled")  # folders that are no class
MASK = re.compile(rf"[._ -](?:{'|'.join(MASKS)})s?[._ -]?\d*$", re.IGNORECASE)
LOOKED_AT = 10_000  # images
SHARE = 0.1  # of the images that have a mask beside them; fewer are chance


EACH = "make a folder for each split and give that as data.path, or take every image with data.image=all"


def check_folder(root: Path, listing: Listing, choice: Choice) -> None:
    """Raise DatasetError if all images are in one folder that is no class ('images') or that holds folders, if folders
    of masks are beside folders of images, if masks are beside images, or if images of several splits are mixed.

    listing: of the images. choice: with `data.image` masks are no question, with 'all' splits neither.
    """
    if not len(listing.names) or choice.image == ALL:
        return
    if choice.image is None and choice.bands is None:
        if choice.label != NONE:
            _check_classes(root, listing)
        check_masks(listing.names)
    if mixed := splits_of_images(listing.names) or splits_beside(root):
        raise DatasetError(f"holds several splits ({mixed}); {EACH}")


def classes_in_doubt(root: Path, names: Sequence[str], classes: Sequence[str]) -> str:
    """A sentence if each class is a folder that holds the same folders, two or more: plants in color/ and gray/, each
    with oak/ and elm/. '' otherwise. names: of the images in `root`; 10,000 at most, evenly spread, are looked at."""
    if len(classes) < 2 or not len(names):
        return ""
    folders: dict[str, set[str]] = defaultdict(set)
    for row in np.linspace(0, len(names) - 1, min(len(names), LOOKED_AT)).astype(int).tolist():
        first, _, below = names[row].partition("/")
        folders[first].add(below.partition("/")[0] if "/" in below else "")
    inner, *others = folders.values()
    if "" in inner or len(inner) < 2 or set(folders) != set(classes) or any(other != inner for other in others):
        return ""
    paths = ",".join(str(root / name) for name in classes[:3]) + ",..." * (len(classes) > 3)
    same = f"its {len(folders)} classes ({_some(classes)}) hold the same folders ({_some(sorted(inner))})"
    return f"{same}; if these are the classes, give data.path=[{paths}]"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def no_classes(names: Sequence[str]) -> tuple[str, str]:
    """What is wrong if folders of these names are photographs beside masks, or unlabeled images beside others, and the
    folder that may be meant; ('', '') for classes."""
    masks = [name for name in names if _is_one_of(name, MASKS)]
    photos = [name for name in names if _is_one_of(name, PHOTOS)]
    if masks and photos and len(masks) + len(photos) == len(names):
        return f"its folders {', '.join(sorted(names))} are no classes", photos[0]
    unlabeled = [name for name in names if split_of(name).word in UNLABELED]
    if unlabeled and len(names) > 1:
        problem = f"its folder {unlabeled[0]}/ is no class (data.label=none takes all images, without labels)"
        return problem, unlabeled[0]
    return "", ""


def check_masks(names: Sequence[str]) -> None:
    """Raise DatasetError if images of these names are masks of others."""
    paired = _masks(names)
    if len(paired) > SHARE * len(names):
        masks = set(paired)
        suffix = next(split_key(name)[1].lower() for name in names if name not in masks)
        problem = f"{len(paired):,} images look like masks of others ({paired[0]}, ...)"
        raise DatasetError(f"{problem}; move them away, or choose with data.image={suffix} or data.image=all")


def _check_classes(root: Path, listing: Listing) -> None:
    used = np.unique(listing.label)
    folders = [listing.classes[label] for label in used if label >= 0]
    if len(folders) == len(used) == 1:
        around = _is_one_of(folders[0], AROUND)
        if around or all(name.count("/") > 1 for name in listing.names):
            problem = f"all images are in {folders[0]}/, which would be the only class"
            raise DatasetError(f"{problem}; give data.path={root / folders[0]}")
    if len(folders) == len(used):
        problem, meant = no_classes(folders)
        if problem:
            raise DatasetError(f"{problem}; give data.path={root / meant}")


def _is_one_of(name: str, words: Sequence[str]) -> bool:
    """Whether a name is one of the words, in the plural or not, with a short word for a split behind it or not."""
    parts = [part.lower() for part in WORD.findall(name) if not part.isdigit()]
    word = "".join(parts[:-1] if parts and parts[-1] in SHORT else parts)
    return word in words or word.removesuffix("s") in words


def _masks(names: Sequence[str]) -> list[str]:
    """The images whose name is that of another image and a word for a mask: 'k.seg.png' of 'k.jpg'."""
    stems = {name: name.rpartition(".")[0] for name in names}
    bases = {name: stem[: found.start()] for name, stem in stems.items() if (found := MASK.search(stem))}
    known = set(stems.values()) if bases else set()
    return [name for name, base in bases.items() if base in known]

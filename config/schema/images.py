"""Settings of the images, from files to crops."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from annotated_types import Len

from config.schema.groups import (
    Bits,
    Group,
    HueTurns,
    OwnFunction,
    Pixels,
    ShareOfArea,
    Sigma,
    Threshold,
)
from config.schema.ranges import (
    MOST_CHANNELS,
    Auto,
    FilePath,
    Holds,
    NotNegative,
    PerChannel,
    Probability,
    Range,
    Size,
    ZeroOrMore,
    rising,
)
from config.schema.setting import MISSING, SPEED, Section, setting

Pair = Len(2, 2)
PERCENTILES = Holds(lambda pair: 0 <= pair[0] < pair[1] <= 100, "[low, high] with 0 <= low < high <= 100")


def is_balance(text: str) -> bool:
    """Whether a text is a value of data.balance."""
    return text in ("none", "class") or re.fullmatch(r"power:(0?\.\d+|[01](\.0*)?)", text) is not None


class Data(Section):
    """The images."""

    path: FilePath | Annotated[list[FilePath], Len(1, 1000)] = setting(
        MISSING,
        "images, *.tar shards, a .tar, a .beton, or a folder with train/ and val/ or test/; also s3://, gs://, hf://, "
        "or https:// of a file or a list; several: [a, b]",
        resume="the images may move; another number of them or other contents are refused",
    )
    weights: Annotated[list[Annotated[float, Range(gt=0, what="each")]], Len(1, 1000)] | None = setting(
        None, "how much of an epoch each path of data.path gets, e.g. [3, 1]; null: as many images as it has"
    )
    balance: Annotated[str, Holds(is_balance, "none, class or power:0.5 (a number from 0 to 1)")] = setting(
        "none",
        "class: all classes come equally often in an epoch; power:0.5: as the square root of their numbers of images; "
        "none: as they are",
    )
    test: FilePath | None = setting(
        None,
        "images of the k-NN test; null: val/ or test/ next to train/, else a tenth held out",
        resume="later evaluations use these images",
    )
    cache: FilePath = setting(
        "data/tables",
        "where sample tables of scanned folders are kept, and images of buckets and servers",
        resume=SPEED,
    )
    cache_bytes: Size = setting(
        "100GB",
        "bytes of images from a bucket or server that data.cache keeps, each for data.path and data.test; of larger "
        "data those that training needs next",
        resume=SPEED,
    )
    workers: ZeroOrMore = setting(0, "processes that scan a folder; 0: one a core", resume=SPEED)
    check: Literal["decode", "headers", "none"] = setting(
        "decode",
        "how a scan checks images. decode: decodes each once; headers: reads only sizes, and an image that cannot be "
        "decoded is found and replaced at its first use; none: the same, but max_bad_fraction limits their number",
        resume="the other scan's table; refused where it has other images",
    )
    image: str | None = setting(
        None,
        "which image of a sample, where it has several: a field of a .beton, or suffixes of files, e.g. jpg,png; all: "
        "every file, of several splits too; null: the only one, or the field called image",
        resume="another choice of images is refused",
    )
    label: str | None = setting(
        None,
        "where labels are: a field of a .beton, a suffix of shards' members or a name in their .json; none: no labels; "
        "null: the usual names",
        resume="other labels are refused",
    )
    channels: Literal["auto", "rgb"] | Annotated[int, Range(ge=1, le=MOST_CHANNELS, unit="channels")] = setting(
        "auto",
        "rgb: images become 8-bit RGB; a number: they keep channels and depth, others are quarantined; auto: they do "
        "if most are .npy, .npz, 16-bit PNG, deeper gray JPEG 2000 or TIFF of other than 8-bit colors, else rgb",
        resume="another choice of channels is refused",
    )
    layout: Literal["auto", "hwc", "chw"] = setting(
        "auto",
        "where arrays of three axes have their channels: hwc: last, chw: first; auto: first if that axis is shorter "
        "than the last, else last",
        resume="another layout is refused",
    )
    bands: str | None = setting(
        None,
        "an image is several files, one for each band: the words in their names that say which, in the order of the "
        "channels, e.g. B02,B03,B08 or red,green,nir; null: one file",
    )
    pages: Literal["channels", "images"] = setting(
        "channels",
        "of a TIFF with several pages: channels: they are the channels of one image; images: each is an image",
    )
    stretch: Annotated[list[float], Pair, PERCENTILES] | None = setting(
        None,
        "two percentiles of all values of a channel, e.g. [0.5, 99.5], which become black and white of uint8 or uint16 "
        "images with their own channels; values outside are clipped; null: none",
    )
    range: Auto | Annotated[list[Annotated[list[int], Pair]], PerChannel] = setting(
        "auto",
        "for stretch: the values of each channel that become black and white; auto: percentiles of the training images",
    )
    max_pixels: Annotated[int, Range(ge=1, le=1 << 30, unit="pixels")] = setting(
        89_478_485,
        "width times height; a larger image is not read and counted as quarantined (too large)",
        resume="another limit is refused where it changes the images",
    )
    neighbors: Annotated[int, Range(ge=1, le=4096, unit="images")] = setting(
        1,
        "so many images that lie beside each other in a shard are drawn together: fewer requests to a bucket or "
        "server, a less random order",
    )
    max_bad_fraction: Annotated[float, Range(ge=0, le=1, what="a share")] = setting(
        0.01,
        "a larger share of images that turn out unreadable while training ends the run",
        resume="the new limit holds from now on",
    )


class GlobalCrops(Section):
    """Large crops; the first crops of an image are these."""

    count: Annotated[int, Range(ge=1, le=64, unit="crops")] = setting(2, "crops of an image")
    size: Pixels = setting(224, "height and width in pixels")
    scale: ShareOfArea = setting([0.14, 1.0], "share of the image's area that a crop covers")


class LocalCrops(Section):
    """Small crops, which predict the codes of others."""

    count: Annotated[int, Range(ge=0, le=64, unit="crops")] = setting(6, "crops of an image; 0: large ones only")
    size: Pixels = setting(96, "height and width in pixels")
    scale: ShareOfArea = setting([0.05, 0.14], "share of the image's area that a crop covers")


class Jitter(Section):
    """Color jitter; strengths as in torchvision's ColorJitter."""

    probability: Probability = setting(0.8, "of the jitter as a whole")
    brightness: NotNegative = setting(0.8, "strength s: a factor from 1 - s to 1 + s")
    contrast: NotNegative = setting(0.8, "strength")
    saturation: Auto | NotNegative = setting("auto", "strength; auto: 0.8, 0 for images that are no color images")
    hue: Auto | HueTurns = setting(
        "auto", "turns of the color circle, either way; auto: 0.2, 0 for images that are no color images"
    )
    gain: NotNegative = setting(0.0, "strength: one more factor for each channel by itself, after the other steps")
    exact: Auto | bool = setting(
        "auto",
        "true: torchvision's steps one by one, clipped, with hue in HSV (ffcv; torchvision always); false: one affine "
        "map of all steps (dali always); auto: true where the backend can",
        resume="colors of later crops differ by a few levels of 255",
    )


class Blur(Section):
    """Gaussian blur."""

    probability: Probability = setting(0.5, "of a blur")
    sigma: Sigma = setting([0.1, 2.0], "lowest and highest standard deviation, in pixels of the crop")


class Solarize(Section):
    """Invert what is bright, after the blur."""

    probability: Probability = setting(0.0, "of solarizing")
    threshold: Threshold = setting(0.5, "values from this share of white on are inverted")


class Posterize(Section):
    """Keep the highest bits of each value only, as the last change."""

    probability: Probability = setting(0.0, "of posterizing")
    bits: Bits = setting(4, "that are kept")


class CropSettings(Section):
    """Random crops of each image, and how they are changed."""

    global_: GlobalCrops = setting(GlobalCrops(), "", name="global")
    local: LocalCrops = LocalCrops()
    groups: list[Group] = setting(
        [],
        "crops that differ, in place of global and local: mappings with count, size, scale and the keys from flip to "
        "custom, e.g. [{size: 224, blur: {probability: 1}}, {size: 96, count: 6}]; what one lacks is as in crops",
    )
    ratio: Annotated[list[float], Len(2, 2), rising()] = setting(
        [0.75, 4 / 3], "lowest and highest aspect ratio of a crop's window"
    )
    flip: Probability = setting(0.5, "probability of a horizontal flip")
    vertical_flip: Probability = setting(0.0, "probability of a vertical flip")
    quarter_turn: Probability = setting(0.0, "probability of a turn by 90, 180 or 270 degrees, each as often")
    jitter: Jitter = Jitter()
    grayscale: Auto | Probability = setting(
        "auto", "probability of dropping color; auto: 0.2, 0 for images that are no color images"
    )
    decode: Literal["scaled", "exact"] = setting(
        "scaled",
        "scaled: ffcv decodes a JPEG only as large as its crops need (1/2, 1/4 or 1/8), and converts colors of crops "
        "only, at most a level off on average; exact: all pixels (dali and torchvision always)",
        resume="crops stay the same, up to rounding",
    )
    blur: Blur = Blur()
    solarize: Solarize = Solarize()
    posterize: Posterize = Posterize()
    custom: OwnFunction | None = setting(
        None, "module:function, your own change of a group's crops before normalization: see docs/views.md; null: none"
    )
    mean: Auto | Annotated[list[float], PerChannel] = setting(
        "auto",
        "of each channel, subtracted from the pixels; 1 is the largest uint8 or uint16, and 1 in float32. auto: of "
        "ImageNet (0.485, 0.456, 0.406) for 8-bit RGB, else of these images, as `make stats` computes it",
    )
    std: Auto | Annotated[list[Annotated[float, Range(gt=0, what="each")]], PerChannel] = setting(
        "auto",
        "of each channel; the pixels are divided by it. auto: as for mean (0.228, 0.224, 0.225 for 8-bit RGB)",
    )


class Pipeline(Section):
    """Who decodes images and makes crops, and where."""

    backend: Literal["auto", "dali", "ffcv", "torchvision"] = setting(
        "auto",
        "ffcv: fused CPU kernel, torchvision: slow reference; auto: a new run times dali and ffcv on its own images "
        "and takes the faster",
        resume="crops stay the same, up to rounding and crops.jitter.exact",
        kept=True,
    )
    device: Literal["auto", "cpu", "gpu"] = setting(
        "auto",
        "where dali decodes and crops, and ffcv does color and blur",
        resume="crops stay the same, up to rounding",
    )
    threads: Auto | Annotated[int, Range(ge=1), Range(le=1024, unit="threads a process")] = setting(
        "auto", "worker threads of each process", resume=SPEED
    )
    hw_decoder_load: Auto | Annotated[float, Range(ge=0, le=1, what="a share")] = setting(
        "auto",
        "share of the JPEGs for the decoding engine of a data-center GPU (A100, H100); with dali on a GPU only. auto: "
        "DALI's 0.65, or 0.9 where pipeline.backend=auto finds it faster",
        kept=True,
        resume="crops stay the same, up to rounding",
    )

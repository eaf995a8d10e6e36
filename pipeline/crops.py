"""The `crops` section of a recipe as plain values, the same for every backend."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, fields, replace
from functools import cached_property, reduce
from operator import getitem
from typing import Any

from config.groups import groups_of

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.228, 0.224, 0.225)  # the published code's
COLOR_VALUES = {  # what `auto` is for pictures in 8-bit RGB
    "mean": [*IMAGENET_MEAN],
    "std": [*IMAGENET_STD],
    "jitter.saturation": 0.8,
    "jitter.hue": 0.2,
    "grayscale": 0.2,
}


@dataclass(frozen=True)
class Jitter:
    """ColorJitter with strengths as in torchvision (hue in turns), then a gain for each channel; with `probability`.

    exact: step by step with clipping and hue in HSV, as torchvision does (dali cannot); else one affine map.
    """

    probability: float = 0.8
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    gain: float = 0.0
    exact: bool = True


@dataclass(frozen=True)
class Blur:
    """Gaussian blur with `probability`, its standard deviation uniform in `sigma` (pixels of the crop)."""

    probability: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)


@dataclass(frozen=True)
class Solarize:
    """Inversion, with `probability`, of values from `threshold` (a share of white) on."""

    probability: float = 0.0
    threshold: float = 0.5


@dataclass(frozen=True)
class Posterize:
    """With `probability`, the highest `bits` of each value alone."""

    probability: float = 0.0
    bits: int = 4


@dataclass(frozen=True)
class Changes:
    """How a crop is changed, in this order. flip (horizontal), vertical_flip and quarter_turn (by 90, 180 or 270
    degrees) and grayscale are probabilities."""

    flip: float = 0.5
    vertical_flip: float = 0.0
    quarter_turn: float = 0.0
    jitter: Jitter = Jitter()
    grayscale: float = 0.2
    blur: Blur = Blur()
    solarize: Solarize = Solarize()
    posterize: Posterize = Posterize()
    custom: str = ""  # module:function, the user's own change, which comes last

    @property
    def turns(self) -> bool:
        """Whether a crop may be turned, a vertical flip being half a turn and a horizontal flip."""
        return self.quarter_turn > 0 or self.vertical_flip > 0

    @property
    def colors(self) -> bool:
        """Whether color jitter or grayscale may change a crop."""
        jitter = self.jitter
        strength = max(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue, jitter.gain)
        return self.grayscale > 0 or (jitter.probability > 0 and strength > 0)

    @property
    def blurs(self) -> bool:
        """Whether a crop may be blurred."""
        return self.blur.probability > 0

    @property
    def tones(self) -> bool:
        """Whether a crop may be solarized or posterized."""
        return self.solarize.probability > 0 or self.posterize.probability > 0


@dataclass(frozen=True)
class View:
    """One crop of an image: `size` x `size` pixels, from a window of `scale` (lowest, highest) of its area.

    own: its changes, where they are not those of all `Crops`.
    """

    size: int
    scale: tuple[float, float]
    own: Changes | None = None


@dataclass(frozen=True)
class Crops:
    """All views of an image, global ones first, and their augmentation; SwAV, section 3.2 and appendix A.

    flip to custom: the `Changes` of views without their own.
    decode: "scaled" lets the ffcv backend decode JPEGs to their own planes, as small as the windows allow; "exact"
    makes it decode all pixels to RGB first. The other backends always do.
    teachers: how many of the last views only the teacher of a distillation sees.
    """

    views: tuple[View, ...]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    vertical_flip: float = 0.0
    quarter_turn: float = 0.0
    jitter: Jitter = Jitter()
    grayscale: float = 0.2
    blur: Blur = Blur()
    solarize: Solarize = Solarize()
    posterize: Posterize = Posterize()
    custom: str = ""
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    decode: str = "scaled"
    teachers: int = 0

    @property
    def groups(self) -> list[tuple[int, list[int]]]:
        """Views that share a resolution: [(size, [view, ...]), ...] in order of first appearance."""
        groups: dict[int, list[int]] = {}
        for index, view in enumerate(self.views):
            groups.setdefault(view.size, []).append(index)
        return list(groups.items())

    @property
    def networks_sizes(self) -> list[int]:
        """Sizes of the views that the network sees, each once."""
        return list(dict.fromkeys(view.size for view in self.views[: len(self.views) - self.teachers]))

    @property
    def networks_places(self) -> list[int]:
        """Places of the views that the network sees, among all views counted group by group."""
        return self._places(range(len(self.views) - self.teachers))

    @property
    def teachers_places(self) -> list[int]:
        """Places of the views that only a teacher sees."""
        return self._places(range(len(self.views) - self.teachers, len(self.views)))

    def _places(self, chosen: range) -> list[int]:
        in_order = [view for _, views in self.groups for view in views]
        return [place for place, view in enumerate(in_order) if view in chosen]

    @cached_property
    def changes(self) -> tuple[Changes, ...]:
        """How each view is changed."""
        shared = Changes(**{field.name: getattr(self, field.name) for field in fields(Changes)})
        return tuple(view.own or shared for view in self.views)

    @property
    def blur_rim(self) -> int:
        """Pixels around a crop that the widest blur reads: three standard deviations."""
        return max((math.ceil(3 * own.blur.sigma[1]) for own in self.changes if own.blurs), default=0)

    def for_evaluation(self, size: int, share: float) -> Crops:
        """One central view of `size` pixels from `share` of the shorter side; normalization kept, no augmentation."""
        return replace(
            self,
            views=(View(size, (share, share)),),
            teachers=0,
            **UNCHANGED,
        )


UNCHANGED: Any = {
    "flip": 0.0,
    "vertical_flip": 0.0,
    "quarter_turn": 0.0,
    "jitter": Jitter(probability=0.0),
    "grayscale": 0.0,
    "blur": Blur(probability=0.0),
    "solarize": Solarize(),
    "posterize": Posterize(),
    "custom": "",
}  # values of `Changes` that leave a crop as it is


def usual_backend(on_gpu: bool) -> str:
    """The backend that is usually the fastest on a GPU or without one, if it is installed."""
    return "ffcv" if not on_gpu and importlib.util.find_spec("ffcv") else "dali"


def native_backends(is_color: bool) -> tuple[str, ...]:
    """The backends that keep the channels and the depth of images. is_color: see `PixelFormat`; DALI's operators of
    color are for 8 bits."""
    return ("ffcv", "torchvision") if is_color else ("ffcv", "torchvision", "dali")


def native_backend(given: str = "auto") -> str:
    """The backend for images with their own channels: `given` if it takes all of them, else the fastest one that is
    installed. Their kernel needs numba alone."""
    if given in native_backends(is_color=True):
        return given
    return "ffcv" if importlib.util.find_spec("numba") else "torchvision"


def exact_color(setting: bool | str, backend: str) -> bool:
    """The value of the setting `crops.jitter.exact`: `auto` is true except for dali, which has affine maps only."""
    return backend != "dali" if setting == "auto" else bool(setting)


def chosen(crops: Any, key: str) -> Any:
    """A value of a recipe's `crops` section; `auto` is that of pictures in 8-bit RGB (a run's fitted settings have
    those of its images)."""
    value = reduce(getitem, key.split("."), crops)
    return COLOR_VALUES[key] if value == "auto" else value


def crops_from_config(config, backend: str = "ffcv", teachers=None) -> Crops:
    """`Crops` from the `crops` section of a recipe (an OmegaConf or plain mapping), for this backend.

    teachers: the section distill.crops, whose views come last; they do not change the others.
    """
    own = bool(config.get("groups"))
    views = [
        View(int(group["size"]), _pair(group["scale"]), _changes(group, backend) if own else None)
        for group in groups_of(config)
        for _ in range(group["count"])
    ]
    if teachers:
        views += [View(int(teachers["size"]), _pair(teachers["scale"]))] * teachers["count"]
    changes = _changes(config, backend)
    return Crops(
        views=tuple(views),
        ratio=_pair(config["ratio"]),
        **{field.name: getattr(changes, field.name) for field in fields(Changes)},
        mean=tuple(chosen(config, "mean")),
        std=tuple(chosen(config, "std")),
        decode=config["decode"],
        teachers=teachers["count"] if teachers else 0,
    )


def _changes(values, backend: str) -> Changes:
    """The changes of the `crops` section or of one of its groups; a checkpoint's may lack the newer ones."""
    return Changes(
        flip=values["flip"],
        vertical_flip=values.get("vertical_flip", 0.0),
        quarter_turn=values.get("quarter_turn", 0.0),
        jitter=Jitter(
            **{
                **values["jitter"],
                "saturation": chosen(values, "jitter.saturation"),
                "hue": chosen(values, "jitter.hue"),
                "exact": exact_color(values["jitter"]["exact"], backend),
            }
        ),
        grayscale=chosen(values, "grayscale"),
        blur=Blur(values["blur"]["probability"], _pair(values["blur"]["sigma"])),
        solarize=Solarize(**values.get("solarize", {})),
        posterize=Posterize(**values.get("posterize", {})),
        custom=values.get("custom") or "",
    )


def _pair(values) -> tuple[float, float]:
    return float(values[0]), float(values[1])

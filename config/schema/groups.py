"""The keys of a group in crops.groups: as the keys of `crops`, but each may be left out."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Len

from common.own_code import FUNCTION
from config.schema.ranges import Auto, Holds, NotNegative, Probability, Range, rising
from config.schema.setting import Section

Pixels = Annotated[int, Range(ge=4, le=4096, unit="pixels")]
ShareOfArea = Annotated[list[float], Len(2, 2), rising(1)]
HueTurns = Annotated[float, Range(ge=0, le=0.5, unit="turns")]
Sigma = Annotated[list[float], Len(2, 2), rising(64, unit="pixels")]
Threshold = Annotated[float, Range(ge=0, le=1, what="a share")]
Bits = Annotated[int, Range(ge=1, le=8, unit="bits")]


OwnFunction = Annotated[str, Holds(lambda text: not text or FUNCTION.fullmatch(text) is not None, "module:function")]


class JitterOfGroup(Section):
    """Color jitter."""

    probability: Probability | None = None
    brightness: NotNegative | None = None
    contrast: NotNegative | None = None
    saturation: Auto | NotNegative | None = None
    hue: Auto | HueTurns | None = None
    gain: NotNegative | None = None


class BlurOfGroup(Section):
    """Gaussian blur."""

    probability: Probability | None = None
    sigma: Sigma | None = None


class SolarizeOfGroup(Section):
    """Invert what is bright."""

    probability: Probability | None = None
    threshold: Threshold | None = None


class PosterizeOfGroup(Section):
    """Keep the highest bits of each value."""

    probability: Probability | None = None
    bits: Bits | None = None


class Group(Section):
    """Crops of one size that are changed in one way."""

    count: Annotated[int, Range(ge=1, le=64, unit="crops")] | None = None
    size: Pixels | None = None
    scale: ShareOfArea | None = None
    flip: Probability | None = None
    vertical_flip: Probability | None = None
    quarter_turn: Probability | None = None
    jitter: JitterOfGroup = JitterOfGroup()
    grayscale: Auto | Probability | None = None
    blur: BlurOfGroup = BlurOfGroup()
    solarize: SolarizeOfGroup = SolarizeOfGroup()
    posterize: PosterizeOfGroup = PosterizeOfGroup()
    custom: OwnFunction | None = None

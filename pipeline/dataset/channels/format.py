"""What the pixels of a dataset are: the number of channels and their type."""

from __future__ import annotations

from dataclasses import dataclass

WHITE = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}  # the value that mean and std count as 1


@dataclass(frozen=True)
class PixelFormat:
    """The pixels of all images of a table.

    channels, dtype: of the decoded arrays (H, W, channels); dtype is a key of WHITE. layout: where a file with three
    axes has its channels, see `pipeline.dataset.channels.arrays.with_channels_last`.
    native: images keep the channels and the depth of their files. Otherwise they are pictures in 8-bit RGB, whatever
    their files hold.
    stored: of images that are stored as bare samples, as an array field of a .beton has them, in the order that
    `layout` says: their NumPy type, such as '<u2'. '' for files.
    range: for each channel the values of a file that become 0 and `white`; those between them are stretched, others
    clipped. () leaves values as they are.
    """

    channels: int = 3
    dtype: str = "uint8"
    layout: str = "auto"
    native: bool = False
    stored: str = ""
    range: tuple[tuple[int, int], ...] = ()

    @property
    def kind(self) -> tuple[bool, int, str]:
        """What images of one dataset share, however they are stored."""
        return self.native, self.channels, self.dtype

    @property
    def white(self) -> float:
        """The value that mean and std count as 1: the largest of an integer type."""
        return WHITE[self.dtype]

    @property
    def has_range(self) -> bool:
        """Whether values end at 0 and `white`; floating-point numbers do not."""
        return self.dtype != "float32"

    @property
    def is_color(self) -> bool:
        """Whether the channels count as red, green and blue, so that saturation, hue and gray have a meaning."""
        return self.channels == 3 and self.has_range

    def __str__(self) -> str:
        stretch = ", stretched" if self.range else ""
        return words(self.channels, self.dtype) + stretch if self.native else "8-bit RGB"


COLOR = PixelFormat()


def words(channels: int, dtype: str) -> str:
    """'4 channels of uint16'"""
    return f"{channels} channel{'s' * (channels != 1)} of {dtype}"

"""Decides the pixel format of a dataset from all its images: see `settled`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.channels.decode import decode_native, is_deep
from pipeline.dataset.channels.format import COLOR, PixelFormat, words
from pipeline.dataset.images import MAX_PIXELS, BadImage, Probe, probe
from pipeline.dataset.table import State

AUTO, RGB = "auto", "rgb"


class Native(NamedTuple):
    """An image decoded to its own channels: size in pixels, channels, dtype, and the reason if it is quarantined."""

    width: int = 0
    height: int = 0
    channels: int = 0
    dtype: str = ""
    reason: str = ""


def look(data: bytes, channels: str | int, layout: str, most: int = MAX_PIXELS) -> tuple[Probe, Native | None]:
    """One image as a picture in 8-bit RGB, and with its own channels if `channels` makes that possible.

    channels: `data.channels`. 'rgb': pictures only; 'auto': what 8-bit RGB cannot show is decoded both ways; a number:
    own channels only. most: pixels.
    """
    if channels == RGB or (channels == AUTO and not is_deep(data)):
        return probe(data, most), None
    try:
        array = decode_native(data, layout, most)
        native = Native(array.shape[1], array.shape[0], array.shape[2], str(array.dtype))
    except BadImage as error:
        native = Native(reason=error.reason)
    if channels == AUTO:
        picture = probe(data, most)
        if picture.reason and native.reason:
            picture = picture._replace(reason=native.reason)  # Pillow knows less of such a file
        return picture, native
    return Probe(0, 0, State.QUARANTINED, native.reason), native


def settled(
    channels: str | int,
    layout: str,
    sizes: tuple[NDArray[np.int32], NDArray[np.int32]],
    state: NDArray[np.uint8],
    quarantine: dict[int, str],
    natives: Mapping[int, Native],
) -> PixelFormat:
    """The format of a dataset; changes the columns of its table in place if images keep their own channels.

    With 'auto' they do if more images need it than not. The format is then the most frequent one, with a number for
    `channels` the most frequent one of so many. All other images are quarantined with their own format as the reason.

    sizes: width and height, (N,) each; state: (N,); quarantine: row -> reason; natives: row -> what `look` has found.
    """
    readable = {row: native for row, native in natives.items() if not native.reason}
    if channels == RGB or not readable:
        return COLOR
    if channels == AUTO:
        pictures = int((state != State.QUARANTINED).sum()) - sum(state[row] != State.QUARANTINED for row in natives)
        if len(readable) <= pictures:
            return COLOR
    found = Counter((native.channels, native.dtype) for native in readable.values())
    wanted = {kind: count for kind, count in found.items() if channels in (AUTO, kind[0])}
    kind = max(wanted, key=lambda one: (wanted[one], one)) if wanted else None
    width, height = sizes
    for row in range(len(state)):
        native = natives.get(row)
        if native is None and state[row] == State.QUARANTINED:
            continue
        if native is not None and (native.channels, native.dtype) == kind:
            width[row], height[row], state[row] = native.width, native.height, State.ARRAY
            quarantine.pop(row, None)
            continue
        own = COLOR if native is None else words(native.channels, native.dtype)
        reason = native.reason if native is not None and native.reason else f"of another kind: {own}"
        width[row], height[row], state[row], quarantine[row] = 0, 0, State.QUARANTINED, reason
    return PixelFormat(*kind, layout, native=True) if kind else COLOR

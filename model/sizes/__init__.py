"""Lets networks that are built for one image size take others, with the same weights.

`network` exchanges what depends on the size; `tables` resamples positions.
"""

from model.sizes.network import Sizes, takes

__all__ = ["Sizes", "takes"]

"""Lets networks that are built for one image size take others, with the same weights."""

from model.sizes.network import Sizes, takes

__all__ = ["Sizes", "takes"]

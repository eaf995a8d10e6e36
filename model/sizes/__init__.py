"""Lets networks that are built for one image size take others, with the same weights.

`trial` tells whether a network takes a size, `network` exchanges what depends on it, `tables` resamples positions.
"""

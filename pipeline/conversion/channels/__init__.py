"""Conversion of images with their own channels and depth.

`kind` decides from a sample of the source what OUT holds; `store` makes the bytes of one image.
"""

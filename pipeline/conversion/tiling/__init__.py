"""Conversion of large images into tiles: `make convert ... ARGS="--tile 512"`.

`grid` says where tiles are and which are kept, `regions` and `tiff` read parts of an image, `source` lists the tiles.
No image is ever in memory as a whole.
"""

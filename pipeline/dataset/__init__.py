"""A dataset on disk as a sample table with one row per image: folders, tar shards, .beton files.

`open` finds or makes the table of `data.path`, `reader` reads the bytes of a row, `images` decodes bytes to pixels.
"""

"""A dataset on disk as a sample table: a row per image, whatever container holds the bytes.

`open` goes from `data.path` to the table, `reader` from a row to its bytes, `images` from bytes to pixels.
"""

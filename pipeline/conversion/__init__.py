"""The parts of `python -m pipeline.convert`: any source of images becomes a .beton, shards or a table.

`sources` lists images as byte ranges, `packing` makes parts of the output, `assembly` joins the parts.
"""

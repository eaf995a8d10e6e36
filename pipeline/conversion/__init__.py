"""The steps of `pipeline.convert`: list any source of images as byte ranges, pack parts, assemble the parts.

`sources` lists (with `spool` for sources without byte ranges), `packing` and `rewrite` make a part, `assembly` joins.
"""

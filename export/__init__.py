"""Writes trained weights in the formats that other libraries load: `python -m export CKPT OUT --format FORMAT`.

`formats` has a function for each format; `counterparts` builds the same network in torchvision or timm.
"""

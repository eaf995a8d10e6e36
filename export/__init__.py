"""Trained weights in the formats that other libraries load: `python -m export CKPT OUT --format FORMAT`.

`formats` has a function for each; `counterparts` finds the same network in torchvision or timm.
"""

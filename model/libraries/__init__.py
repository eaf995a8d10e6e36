"""Backbones of other libraries than timm, and the user's own: torchvision:NAME, transformers:NAME, module:function.

Each file builds one kind; `names` tells them apart, `options` checks model.options against a signature.
"""

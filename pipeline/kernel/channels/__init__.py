"""The fused kernel for images with any number of channels in uint8, uint16 or float32.

All arithmetic is in float32, so that the crops are those of `pipeline.backends.native` up to float32's rounding.
"""

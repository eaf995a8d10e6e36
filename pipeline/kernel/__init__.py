"""The fused multi-crop kernel for CPUs, compiled by numba: one decode per image, then all of its crops.

`kernel` is the entry; `driver` runs decode, resample, hsv and pixels on the vectors of `simd`.
"""

"""The fused multi-crop kernel for CPUs, compiled by numba: decodes an image once, then makes all of its crops.

`kernel` is the entry point and `driver` the compiled loop over rows. `header`, `decode`, `resample` or `planes`, `hsv`
and `pixels` are its steps; `simd` and `native` give numba vector instructions, C calls and an atomic counter.
"""

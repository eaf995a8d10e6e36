"""The backends, which execute a draw: `dali`, `ffcv` (the fused kernel) and `torchvision` (the slow reference).

All take the same requests and make the same crops. `device_color` and `device_hsv` do the color part on a GPU.
"""

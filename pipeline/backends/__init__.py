"""What executes a draw: `dali`, `ffcv` (the fused kernel) and `torchvision` (the slow reference).

All take the same requests and give the same crops. `device_color` and `device_hsv` are the color half on a GPU.
"""

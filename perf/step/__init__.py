"""Where a training step goes: `python -m perf.step`.

The steps of train.py with its real loader, phase by phase, beside a plain PyTorch loop as the peer.
"""

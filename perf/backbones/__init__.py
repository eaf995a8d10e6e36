"""Backbones of other libraries: which work at two sizes of crops, and which formats of export hold them.

`__main__` (`python -m perf.backbones`) tries models, `step` trains with one, `exports` loads exported ones elsewhere.
"""

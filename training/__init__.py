"""A training run around the model: built from its settings, stepped by DeepSpeed, saved, resumed and recorded.

`train.py` is the story; each module here is one part of it. `checkpoint/` and `profiling/` are rooms of their own.
"""

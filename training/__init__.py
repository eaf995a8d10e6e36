"""A training run around the model: built from its settings, stepped by DeepSpeed, saved, resumed and recorded.

`train.py` is the story; each module here is one part of it. `auto` and `build` make the parts, `run_state` names what
is saved, `run_directory` writes the records. `checkpoint` writes and reads checkpoints, `profiling` measures where the
time of a step goes.
"""

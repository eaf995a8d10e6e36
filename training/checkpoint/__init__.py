"""Checkpoints: tensors by name and JSON, whole or not there at all, for any number of ranks and any ZeRO stage.

`save_load` writes and reads them and `shards` names the tensors: both know no part of a run. `masters` gives a network
and its optimizer to a checkpoint and takes them back.
"""

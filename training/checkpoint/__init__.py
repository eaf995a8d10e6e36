"""Checkpoints: named tensors and JSON, whole or not there at all, for any number of ranks and any ZeRO stage.

`save_load` writes and reads them, `shards` holds one rank's tensors, `weights` reads a network out of one.
"""

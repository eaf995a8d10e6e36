"""Passes over the images without steps: before a run's first step, and before the epochs of methods that cluster.

`first_pass` makes them for `warm_start` (a run that goes on from weights) and `epoch_targets` (the other methods).
"""

"""Optimizers that take the same step at every ZeRO stage: LARS, AdamW and Muon, and the learning rate of each step.

`segments` says which part of which parameter an optimizer's tensors hold; `build` makes what a recipe names.
"""

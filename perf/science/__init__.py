"""The science check, `make science`: how much each method learns from Fashion-MNIST in the same time.

`plan` divides the time, `runs` and `jobs` train, `score` evaluates a trained backbone, `output` writes the results.
"""

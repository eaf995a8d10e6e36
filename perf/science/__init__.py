"""The science check, `make science`: how much each method learns from Fashion-MNIST in the same time.

`plan` shares out the time, `runs` and `jobs` train, `score` measures a trained backbone, `output` writes the result.
"""

"""Scores a trained backbone: features of images, and classifiers and retrieval on them.

`command` runs an evaluation from its arguments to the printed table, `commands` holds the sub-commands of evaluate.py,
`classifiers` the methods that score.
"""

"""The trained teacher of method=distill: `teacher` builds it from the settings and its file of weights.

`prototypes` finds its prototypes before the first step where the file has none.
"""

"""The settings of a run: recipes (*.yaml), and how they become one checked configuration.

`default.yaml` has every setting with its default; `recipe` merges defaults, recipe and `key=value` arguments and checks
them. Loads without torch.
"""

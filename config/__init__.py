"""Recipes (*.yaml), and how they are read and checked (recipe.py).

schema/ declares every setting once; rules.py has what settings require of each other; default.yaml lists all defaults.
"""

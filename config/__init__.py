"""Recipes (*.yaml), and how they are read and checked (recipe.py).

schema/ declares every setting once; rules.py has the rules between settings; default.yaml lists all defaults.
"""

"""Recipes (*.yaml), every setting with its default (default.yaml), and how they are read and checked (recipe.py)."""

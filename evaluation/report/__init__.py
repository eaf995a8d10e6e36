"""The HTML page of `evaluate.py report`: result files side by side, and pictures.

`page` puts the page together, `pictures` draws neighbors, clusters, projections and curves.
"""

"""Benchmarks of sample tables.

`scan.py`: how long the first scan of images takes; `scale.py`: what a table of millions of rows costs a rank.
"""

"""The cost of codes: `python -m perf.sinkhorn`.

Measures Sinkhorn and its all-reduces on the ranks of this machine, and predicts them for up to 512 nodes.
"""

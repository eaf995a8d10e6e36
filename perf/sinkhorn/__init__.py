"""What codes cost: `python -m perf.sinkhorn`.

Sinkhorn and its all-reduces timed on the ranks at hand, and predicted for up to 512 nodes.
"""

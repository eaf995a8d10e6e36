"""What things cost, measured on the machine at hand, peers included.

`python -m perf.loader` compares loaders; results that we keep are in `perf/results`.
"""

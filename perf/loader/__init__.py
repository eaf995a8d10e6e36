"""The rates of data loaders in images a second: `python -m perf.loader`, or `make bench`.

swave's loaders and other projects' loaders take turns in one run, so that their ratios hold on any machine.
"""

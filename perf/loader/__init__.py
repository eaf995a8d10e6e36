"""How many images a second each loader gives: `python -m perf.loader`, or `make bench`.

Ours and the peers take turns in one run, so that their ratios hold on any machine.
"""

"""Benchmarks and checks: speed and memory on this machine, compared with other programs in the same run.

Each is a program (`python -m perf.loader`); results worth keeping are in `perf/results`, notes in `perf/NOTES.md`.
"""

"""Where the time of a training step goes: phases, collectives, each rank's waits, and what bounds the step.

Used by `train.py` (perf.profile=true) and by the benchmarks of `perf/`.
"""

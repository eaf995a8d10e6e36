"""The ground floor: what every other package may use, and what uses none of them.

Command line and one-line errors, files that survive a crash, progress bars, processes, this machine. No torch.
"""

"""The lowest package: every other package may use it. It uses no other package and loads without torch.

Command line and one-line errors (`cli`), files that survive a crash (`files`), progress bars, processes, versions,
SLURM's notation, and the GPUs and network interfaces of this machine (`machine`).
"""

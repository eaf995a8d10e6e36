"""From a dataset on disk to augmented crops in memory.

One sample table (what there is), one order (when it comes), one draw (how it is cropped); backends only execute a draw.
Kept free of imports: the processes that scan a folder load neither torch nor DALI.
"""

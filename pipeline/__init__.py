"""From a dataset on disk to augmented crops in memory.

A sample table lists the images, an order says when each comes, a draw how it is cropped; backends execute the draw.
This file imports nothing, so that the processes that scan a folder load neither torch nor DALI.
"""

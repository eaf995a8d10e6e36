"""From a data set on disk to augmented crops in memory.

One sample table (what there is), one order (when it comes), one draw (how it is cropped); backends only execute."""

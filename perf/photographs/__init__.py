"""Crops of camera photographs: this checkout, another one and torchvision take turns.

`__main__` is the program, `images` makes the photographs, `worker` is a process of one contender.
"""

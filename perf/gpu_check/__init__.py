"""All checks of swave that need a GPU: are the results correct, how fast is it, and which settings suit the device?

`python -m perf.gpu_check --explain` lists the parts.
"""

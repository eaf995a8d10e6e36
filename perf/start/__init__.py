"""`python -m perf.start`: where the seconds from `make train` to the end of the first step go.

`__main__` starts runs and draws the waterfall; `marks` notes in each process what it imports and waits for.
"""

"""`make faults`: breaks the real programs on purpose, one fault a row, and checks what a user sees and loses.

`place` starts programs in a folder of their own and stops them at a point of the code; `fault` starts them again and
compares with an undisturbed run. The faults are in `kills`, `disks`, `damage`, `values`, `remote`, `machine` and
`network`. `long_run` looks for leaks.
"""

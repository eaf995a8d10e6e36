"""The sub-commands of evaluate.py, a module each.

Every one has `main(arguments)`, which returns the exit code. Heavy libraries are imported after the arguments are
checked.
"""

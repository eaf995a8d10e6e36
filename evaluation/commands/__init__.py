"""The sub-commands of evaluate.py: a module each, with `main(arguments)`. Heavy imports wait for good arguments."""

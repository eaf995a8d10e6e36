"""The HTML page of `evaluate.py report`: result files side by side, and pictures."""

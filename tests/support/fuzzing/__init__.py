"""What `make fuzz` and its short test share: readers of what others wrote, and random changes of valid inputs.

Each input must be accepted whole or refused in one line.
"""

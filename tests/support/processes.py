"""What tests ask of processes that may end at any time."""

import psutil


def words_of(process):
    """The words of its command; none of one that has ended, or is about to."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []

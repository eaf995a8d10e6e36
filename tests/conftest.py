"""What all tests share."""

import os
import signal
from collections import Counter
from pathlib import Path

USUAL = 10  # seconds of a slow test that does not say how many it takes

# Tests run on machines of two cores, several processes at a time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

# Under nohup a run would rightly take no notice of it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items):
    """The files that take longest first, so that at the end no worker is left alone with one of them."""
    seconds: Counter[Path] = Counter()
    for item in items:
        marker = item.get_closest_marker("slow")
        seconds[item.path] += marker.kwargs.get("seconds", USUAL) if marker else 0
    items.sort(key=lambda item: -seconds[item.path])

"""Settings of all tests."""

import os
import signal
from collections import Counter
from pathlib import Path

from hypothesis import settings

from common import progress

USUAL = 10  # seconds that a test marked slow takes if it gives no `seconds`

# Tests run on machines of two cores, several processes at a time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

# A slow moment of the machine puts no bar among the lines that a test reads; tests of bars set their own delay.
progress.DELAY = 60.0

# Every run draws the same examples; `--hypothesis-profile=default` draws new ones.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")

# Under nohup processes ignore SIGHUP; the tests of signals need the default.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items):
    """Run the slowest files first, so that at the end no worker still has a long file to run."""
    seconds: Counter[Path] = Counter()
    for item in items:
        marker = item.get_closest_marker("slow")
        seconds[item.path] += marker.kwargs.get("seconds", USUAL) if marker else 0
    items.sort(key=lambda item: -seconds[item.path])

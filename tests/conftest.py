"""What all tests share."""

import os
import signal
from collections import Counter

# Tests run on machines of two cores, several processes at a time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

# Under nohup a run would rightly take no notice of it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items):
    """Files with many slow tests first, so that at the end no worker is left alone with one of them."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])

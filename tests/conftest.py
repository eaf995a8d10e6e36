"""What all tests share."""

import os

# Tests run on machines of two cores, several processes at a time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

"""Compiles the kernel for this CPU, so that no run waits for it: `python -m pipeline.kernel`, in launch/setup.sh."""

from config.recipe import default_config
from pipeline.crops import crops_from_config
from pipeline.kernel.kernel import Kernel

if __name__ == "__main__":
    Kernel(crops_from_config(default_config().crops, "ffcv"), threads=1).close()

"""Compiles the kernels for this CPU, so that no run waits for it: `python -m pipeline.kernel`, in launch/setup.sh."""

from config.recipe import default_config
from pipeline.crops import crops_from_config
from pipeline.dataset.channels.format import COLOR
from pipeline.kernel.channels.kernel import ChannelKernel
from pipeline.kernel.kernel import Kernel

if __name__ == "__main__":
    crops = crops_from_config(default_config().crops, "ffcv")
    Kernel(crops, threads=1).close()
    ChannelKernel(crops, COLOR, threads=1).close()

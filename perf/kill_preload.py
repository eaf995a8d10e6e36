"""What each process of perf.kill_check would import by itself: imported once, before they are forked.

Nothing here may start a thread or open a connection.
"""

# ruff: noqa: F401
import deepspeed
import nvidia.dali.fn
import torch.utils.tensorboard
import tqdm

from evaluation import features
from evaluation.classifiers import knn
from model import monitor
from model.optimizer import build as optimizer
from pipeline.backends import dali
from pipeline.dataset import open
from training import auto, build, deepspeed_engine, run_directory
from training.checkpoint import save_load

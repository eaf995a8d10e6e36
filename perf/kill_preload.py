"""What each process of perf.kill_check would import by itself: imported once, before they are forked.

Nothing here may start a thread or open a connection.
"""

# ruff: noqa: F401
import deepspeed
import nvidia.dali.fn
import torch.utils.tensorboard
import tqdm

from evaluation import features, knn
from launch import build, checkpoint, engine, fit, journal
from model import monitor, optimizer
from pipeline import dali, dataset

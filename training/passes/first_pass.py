"""The network's embeddings of the first epoch's crops, before the first step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float, Int
from omegaconf import DictConfig
from torch import Tensor

from common.progress import progress_bar
from model.views import select_views
from pipeline.batch import split_batch
from pipeline.loader import Loader
from training.deepspeed_engine import input_dtype
from training.distributed import Cluster
from training.stopping import StopSignal, stopping_on_bad_data

Take = Callable[[Int[Tensor, " batch"], Float[Tensor, "assigning batch dim"]], object]


@torch.no_grad()
def first_pass(
    take: Take, steps: int, config: DictConfig, loader: Loader, engine: Any, cluster: Cluster, stop_signal: StopSignal
) -> bool:
    """Call `take` with rows and embeddings of the assigning crops, for `steps` steps of the loader's epoch at most; to
    be called on all ranks.

    Batch norm works as in training: the batch's statistics normalize, and the running statistics follow. The loader
    returns to the position that it had. Returns False if a signal has ended the pass.
    """
    parts, assigning, steps = config.engine.accumulation, tuple(config.swav.assigning), min(steps, len(loader))
    device, dtype, start = cluster.device(), input_dtype(config), loader.state_dict(cluster.add_up)
    with progress_bar(steps, "first embeddings", "step", cluster.main) as bar:
        for images in islice(stopping_on_bad_data(loader), steps):
            crops, rows = [crop.to(device, dtype) for crop in images.crops], torch.from_numpy(images.rows)
            here = len(rows) // parts
            for part, part_rows in zip(split_batch(crops, len(rows), parts), rows.split(here), strict=True):
                take(part_rows, select_views(engine(part, here, None)[0], assigning))
            bar.update()
            if cluster.add_up([stop_signal.received is not None])[0]:
                return False
    loader.load_state_dict(start)
    return True

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
from model.teacher import only_views
from model.views import select_views
from pipeline.batch import split_batch
from pipeline.loader import Loader
from training.deepspeed_engine import input_dtype
from training.distributed import Cluster
from training.stopping import StopSignal, stopping_on_bad_data

Embed = Callable[[list[Tensor], int], Float[Tensor, "views batch dim"]]
Take = Callable[[Int[Tensor, " batch"], Float[Tensor, "assigning batch dim"]], object]


@torch.no_grad()
def first_pass(
    take: Take, steps: int, config: DictConfig, loader: Loader, embed: Embed, cluster: Cluster, stop_signal: StopSignal
) -> bool:
    """Call `take` with rows and embeddings, for `steps` steps of the loader's epoch at most; to be called on all ranks.

    embed: gives the embeddings of a part's crops, e.g. `of_assigning`. Batch norm works as in training: the batch's
    statistics normalize, and the running statistics follow. The loader returns to the position that it had. Returns
    False if a signal has ended the pass.
    """
    parts, steps = config.engine.accumulation, min(steps, len(loader))
    device, dtype, start = cluster.device(), input_dtype(config), loader.state_dict(cluster.add_up)
    with progress_bar(steps, "first embeddings", "step", cluster.main) as bar:
        for images in islice(stopping_on_bad_data(loader, stop_signal), steps):
            if images is None:
                return False
            crops, rows = [crop.to(device, dtype) for crop in images.crops], torch.from_numpy(images.rows)
            here = len(rows) // parts
            for part, part_rows in zip(split_batch(crops, len(rows), parts), rows.split(here), strict=True):
                take(part_rows, embed(part, here))
            bar.update()
            if cluster.add_up([stop_signal.received is not None])[0]:
                return False
    loader.load_state_dict(start)
    return True


def of_assigning(engine: Any, config: DictConfig, loader: Loader) -> Embed:
    """The network's embeddings of the crops in swav.assigning."""
    assigning, places = tuple(config.swav.assigning), loader.crops.networks_places

    def embed(part: list[Tensor], batch_size: int) -> Tensor:
        return select_views(engine(only_views(part, batch_size, places)[0], batch_size, None)[0], assigning)

    return embed

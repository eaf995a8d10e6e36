"""A linear classifier that trains at the same time as the network: a curve of the features' quality during training.

It does not change the network: its features are detached, and the classifier has its own optimizer. It sees each image
once per epoch, as one augmented crop, while the features still change, so its accuracy is below that of
`evaluate.py linear`.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from model.state import ALIKE, RankTensors

LEARNING_RATE = 2.0  # for inputs of unit length
MOMENTUM = 0.9
SHARE = 0.01  # least weight of a batch in the running mean and variance


class Probe:
    """Softmax regression on L2-normalized features, standardized by running statistics; SGD with momentum.

    labels: [images] class of each row of the training table, from 0 to classes - 1; -1 for images that it must not
    learn from. features: dimension of a feature.

    One all-reduce a step sums gradient, statistics and counts, so the state is always the same on all ranks.
    """

    def __init__(
        self, labels: Int[np.ndarray, " images"], classes: int, features: int, device: torch.device | str = "cpu"
    ) -> None:
        self.labels, self.features = labels, features
        self.state = {  # written in place, the same on all ranks
            "weight": torch.zeros(classes, features + 1, device=device),  # the last column is the bias
            "velocity": torch.zeros(classes, features + 1, device=device),
            "mean": torch.zeros(features, device=device),
            "variance": torch.full((features,), 1.0 / features, device=device),  # of a vector of unit length
            "seen": torch.zeros(3, dtype=torch.float64, device=device),  # steps; since `summary`: images, correct ones
        }

    @torch.no_grad()
    def update(self, features: Float[Tensor, "batch features"], rows: Int[np.ndarray, " batch"]) -> None:
        """Classify the images of a step, then learn from them. rows: their rows in the training table."""
        state = self.state
        labels = torch.from_numpy(self.labels[rows]).to(state["mean"].device, non_blocking=True)
        known = (labels >= 0).float()
        unit = torch.nn.functional.normalize(features.detach().float())
        inputs = self._inputs(unit)
        logits = inputs @ state["weight"].T
        error = logits.softmax(1).scatter_add(1, labels.clamp(min=0)[:, None], -torch.ones_like(known)[:, None])
        gradient = (error * known[:, None]).T @ inputs
        away = unit - state["mean"]
        right = ((logits.argmax(1) == labels) * known).sum()
        counts = torch.stack([known.sum(), right, torch.full_like(right, len(unit))])
        sums = torch.cat([gradient.flatten(), away.sum(0), away.square().sum(0), counts])
        if dist.is_initialized():
            dist.all_reduce(sums)

        gradient, first, second, counts = sums.split([gradient.numel(), self.features, self.features, 3])
        state["velocity"].mul_(MOMENTUM).add_(gradient.view_as(state["velocity"]) / counts[0].clamp(min=1))
        state["weight"].sub_(state["velocity"], alpha=LEARNING_RATE)
        # mean and variance of a mixture of the old distribution and, with weight `share`, the batch's
        share = (1 / (state["seen"][0] + 1)).clamp(min=SHARE).float()
        shift, spread = share * first / counts[2], share * second / counts[2]
        state["mean"].add_(shift)
        state["variance"].mul_(1 - share).add_(spread - shift.square())
        state["seen"].add_(torch.cat([counts.new_ones(1), counts[:2]]))

    @torch.no_grad()
    def classify(self, features: Float[Tensor, "batch features"]) -> Int[Tensor, " batch"]:
        """The predicted class of each image."""
        unit = torch.nn.functional.normalize(features.float())
        return (self._inputs(unit) @ self.state["weight"].T).argmax(1)

    def summary(self) -> dict[str, float]:
        """{"probe_train": accuracy in [0, 1] on the training images since the last call}, {} without such images.

        Each image is classified before the probe learns from it. Waits for the device.
        """
        _, images, right = self.state["seen"].tolist()
        self.state["seen"][1:] = 0
        return {"probe_train": right / images} if images else {}

    def state_tensors(self) -> dict[str, Tensor]:
        """All of `state`, the same on all ranks."""
        return {f"{ALIKE}probe/{name}": tensor for name, tensor in self.state.items()}

    def load_state_tensors(self, saved: RankTensors, rank: int = 0, world_size: int = 1) -> None:
        """Continue from a saved probe. Tensors that are missing or have another shape keep their initial values: a run
        may switch the probe on, or get labels of other classes, after it has begun."""
        for name, tensor in self.state_tensors().items():
            if name in saved[0] and saved[0][name].shape == tensor.shape:
                tensor.copy_(saved[0][name])

    def _inputs(self, unit: Float[Tensor, "batch features"]) -> Float[Tensor, "batch features_and_one"]:
        """The standardized features, scaled to about unit length, and a column of ones for the bias."""
        scale = self.features * (self.state["variance"] + 1e-5 / self.features)
        return torch.cat([(unit - self.state["mean"]) * scale.rsqrt(), torch.ones_like(unit[:, :1])], dim=1)

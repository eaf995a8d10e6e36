"""Collapse diagnostics: how the prototypes are used, gathered over an epoch at the cost of two sums a step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


class CodeMonitor:
    """Sums over the codes and embeddings of this rank; `summary` adds up all ranks."""

    def __init__(self, num_prototypes: int, embedding_dim: int, device: torch.device | str = "cpu"):
        self.num_prototypes = num_prototypes
        self.sums = {
            "hard": torch.zeros(num_prototypes, dtype=torch.float64, device=device),
            "code": torch.zeros(num_prototypes, dtype=torch.float64, device=device),
            "embedding": torch.zeros(embedding_dim, dtype=torch.float64, device=device),
            "square": torch.zeros(embedding_dim, dtype=torch.float64, device=device),
            "entropy": torch.zeros(1, dtype=torch.float64, device=device),
            "count": torch.zeros(1, dtype=torch.float64, device=device),
        }

    @torch.no_grad()
    def update(
        self, codes: Float[Tensor, "crops batch prototypes"], embeddings: Float[Tensor, "crops batch dim"]
    ) -> None:
        """Take in a step's codes and the embeddings of the same crops."""
        codes, embeddings = codes.flatten(0, 1), embeddings.flatten(0, 1)
        self.sums["hard"] += torch.bincount(codes.argmax(1), minlength=self.num_prototypes)
        self.sums["code"] += codes.sum(0)
        self.sums["embedding"] += embeddings.sum(0)
        self.sums["square"] += embeddings.square().sum(0)
        self.sums["entropy"] += torch.special.entr(codes).sum()
        self.sums["count"] += len(codes)

    def summary(self) -> dict[str, float]:
        """Over all ranks since the last `reset`, by one all-reduce:

        prototypes_in_use   share of prototypes that were some crop's strongest code, in [0, 1]
        code_entropy        mean entropy of a crop's code in nats; ln(prototypes) is a code that says nothing
        mean_code_entropy   entropy of the mean code in nats; far below ln(prototypes): a few prototypes take all
        embedding_std       mean over dimensions of the embeddings' standard deviation; 0 is collapse,
                            1 / sqrt(dim) an even spread over the sphere
        """
        total = torch.cat(list(self.sums.values()))
        if dist.is_initialized():
            dist.all_reduce(total)
        sums = dict(zip(self.sums, total.cpu().split([len(v) for v in self.sums.values()]), strict=True))
        count = max(float(sums["count"]), 1.0)
        mean_code = sums["code"] / count
        variance = sums["square"] / count - (sums["embedding"] / count).square()
        return {
            "prototypes_in_use": float((sums["hard"] > 0).double().mean()),
            "code_entropy": float(sums["entropy"]) / count,
            "mean_code_entropy": float(torch.special.entr(mean_code).sum()),
            "embedding_std": float(variance.clamp(min=0).sqrt().mean()),
        }

    def reset(self) -> None:
        for total in self.sums.values():
            total.zero_()


def advice(losses: Sequence[float], summary: dict[str, float], num_prototypes: int) -> str | None:
    """What to try when an epoch's losses or code summary show trouble; None if they look healthy."""
    recent = losses[len(losses) // 2 :]
    if recent and sum(recent) / len(recent) > 0.995 * math.log(num_prototypes):
        return (
            f"the loss stands at ln(prototypes) = {math.log(num_prototypes):.3f}, so nothing is learned: try a lower "
            "swav.epsilon (0.03), a longer swav.freeze_prototypes, or fewer model.prototypes"
        )
    if summary["embedding_std"] < 1e-3:
        return "all embeddings are the same (collapse): try a lower optimizer.base_lr or a longer warm-up"
    if summary["prototypes_in_use"] < 0.5:
        return (
            f"{1 - summary['prototypes_in_use']:.0%} of the prototypes were no crop's strongest code in this epoch: "
            "try fewer model.prototypes, a longer swav.queue or a larger run.batch_size"
        )
    return None

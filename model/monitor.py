"""Collapse diagnostics: statistics of codes and embeddings over an epoch, gathered without waiting for the device."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


class CodeMonitor:
    """Sums over the codes, embeddings and losses of this rank; `summary` adds up all ranks.

    num_prototypes: of each head. heads: the codes of all heads are concatenated.
    """

    def __init__(
        self, num_prototypes: int, embedding_dim: int, device: torch.device | str = "cpu", heads: int = 1
    ) -> None:
        self.num_prototypes, self.heads = num_prototypes, heads
        self.sums = {
            "hard": torch.zeros(heads * num_prototypes, dtype=torch.float64, device=device),
            "code": torch.zeros(heads * num_prototypes, dtype=torch.float64, device=device),
            "embedding": torch.zeros(embedding_dim, dtype=torch.float64, device=device),
            "square": torch.zeros(embedding_dim, dtype=torch.float64, device=device),
            "alike": torch.zeros(1, dtype=torch.float64, device=device),
            "entropy": torch.zeros(1, dtype=torch.float64, device=device),
            "count": torch.zeros(1, dtype=torch.float64, device=device),
            "loss": torch.zeros(1, dtype=torch.float64, device=device),
            "steps": torch.zeros(1, dtype=torch.float64, device=device),
        }

    @torch.no_grad()
    def update(
        self,
        codes: Float[Tensor, "crops batch heads_prototypes"],
        embeddings: Float[Tensor, "crops batch dim"],
        loss: Float[Tensor, ""],
    ) -> None:
        """Add a step's codes, the embeddings of the same crops, and the loss. A code of zeros uses no prototype."""
        self.sums["alike"] += _squared_cosine(embeddings[0])  # of one crop: the crops of an image should be similar
        codes, embeddings = codes.flatten(0, 1), embeddings.flatten(0, 1)
        # scatter_add_, since bincount makes the host wait for a GPU
        most, strongest = codes.reshape(-1, self.num_prototypes).max(1)
        strongest += torch.arange(self.heads, device=codes.device).repeat(len(codes)) * self.num_prototypes
        self.sums["hard"].scatter_add_(0, strongest, (most > 0).double())
        self.sums["code"] += codes.sum(0)
        self.sums["embedding"] += embeddings.sum(0)
        self.sums["square"] += embeddings.square().sum(0)
        self.sums["entropy"] += torch.special.entr(codes).sum() / self.heads
        self.sums["count"] += len(codes)
        self.sums["loss"] += loss.detach()
        self.sums["steps"] += 1

    def summary(self) -> dict[str, float]:
        """Over all ranks since the last `reset`, by one all-reduce:

        mean_loss           in nats
        prototypes_in_use   share of prototypes that were some crop's strongest code, in [0, 1]
        code_entropy        mean entropy of a crop's code in nats; ln(prototypes) is a uniform code
        mean_code_entropy   entropy of the mean code in nats; far below ln(prototypes): a few prototypes take all
                            (both: the mean over heads)
        embedding_std       mean over dimensions of the embeddings' standard deviation; 0 is collapse,
                            1 / sqrt(dim) an even spread over the sphere
        embedding_rank      effective number of dimensions that embeddings of a batch's different images lie in:
                            1 / mean squared cosine; 1 is collapse onto a line, dim an even spread
        """
        sums = {name: torch.tensor(values, dtype=torch.float64) for name, values in self.state_dict().items()}
        count = max(float(sums["count"]), 1.0)
        steps, mean_code = max(float(sums["steps"]), 1.0), sums["code"] / count
        variance = sums["square"] / count - (sums["embedding"] / count).square()
        return {
            "mean_loss": float(sums["loss"]) / steps,
            "prototypes_in_use": float((sums["hard"] > 0).double().mean()),
            "code_entropy": float(sums["entropy"]) / count,
            "mean_code_entropy": float(torch.special.entr(mean_code).sum()) / self.heads,
            "embedding_std": float(variance.clamp(min=0).sqrt().mean()),
            "embedding_rank": 1 / max(float(sums["alike"]) / steps, 1e-6),
        }

    def state_dict(self) -> dict[str, list[float]]:
        """The sums over all ranks, the same on every rank. Collective: call it on all ranks at once."""
        total = torch.cat(list(self.sums.values()))
        if dist.is_initialized():
            dist.all_reduce(total)
        parts = total.cpu().split([len(value) for value in self.sums.values()])
        return {name: part.tolist() for name, part in zip(self.sums, parts, strict=True)}

    def load_state_dict(self, state: dict[str, list[float]], rank: int = 0) -> None:
        """Continue from saved sums: rank 0 takes them, the others start from zero. A sum that an older checkpoint lacks
        starts from zero. Raises KeyError, TypeError or ValueError, on all ranks, for malformed sums."""
        saved = {name: torch.tensor(values, dtype=torch.float64) for name, values in state.items()}
        wrong = [name for name, values in saved.items() if values.shape != self.sums[name].shape]
        if wrong:
            raise ValueError(f"'{wrong[0]}' has another length")
        self.reset()
        if rank == 0:
            for name, values in saved.items():
                self.sums[name] += values.to(self.sums[name].device)

    def reset(self) -> None:
        for total in self.sums.values():
            total.zero_()


def _squared_cosine(embeddings: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """The mean squared dot product over pairs of different rows, which have unit length.

    For many rows this is the squared norm of their second moment, whose trace is 1: 1 / k for k equal directions.
    """
    pairs = (embeddings.T @ embeddings).square().sum() - embeddings.square().sum(1).square().sum()
    return pairs / max(len(embeddings) * (len(embeddings) - 1), 1)


def loss_of_a_guess(num_prototypes: int, embedding_dim: int, temperature: float) -> float:
    """An upper bound, in nats, on the mean loss of embeddings that are independent of their codes.

    Guessing is not uniform: scores s of random unit vectors in d dimensions have mean 0 and variance 1/d, so that

        E[ln sum_k exp(s_k / T) - s_code / T]  <=  ln K + ln E[exp(s / T)]  <=  ln K + min(1 / T, 1 / (2 d T^2))

    by Jensen's inequality: 0.4 nats above ln K for 128 dimensions and T = 0.1, but 6 for 8 dimensions.
    """
    inverse = 1 / temperature  # whose square may be infinite, but not a division by zero
    return math.log(num_prototypes) + min(inverse, inverse * inverse / (2 * embedding_dim))


def advice(
    summary: dict[str, float],
    num_prototypes: int,
    method: str = "swav",
    embedding_dim: int = 128,
    temperature: float = 0.1,
) -> list[str]:
    """What to try when an epoch's summary (`CodeMonitor.summary`) shows trouble, a line for each; empty if it is fine.

    num_prototypes: of a head. The others as in the recipe; they decide how high a loss is normal (`loss_of_a_guess`).
    """
    lines, limit, swav = list[str](), math.log(num_prototypes), method == "swav"
    guess = loss_of_a_guess(num_prototypes, embedding_dim, temperature)
    if abs(summary["mean_loss"] - limit) <= 0.005 * limit:
        lines.append(
            f"the loss stands at ln(prototypes) = {limit:.3f}, so nothing is learned: try "
            f"{'a lower swav.epsilon, a longer swav.freeze_prototypes, or ' if swav else ''}fewer model.prototypes"
        )
    elif summary["mean_loss"] > max(1.5 * limit, limit + 2, guess + 1):  # a first epoch at a high rate may be above
        lines.append(
            f"the loss is far above ln(prototypes) = {limit:.3f}, worse than a guess (at most {guess:.3f}): where it "
            "does not fall in the next epochs, try a lower optimizer.base_lr or a longer optimizer.warmup_epochs"
        )
    if summary["embedding_std"] < 1e-3:
        lines.append("all embeddings are the same (collapse): try a lower optimizer.base_lr or a longer warm-up")
    if summary["prototypes_in_use"] < 0.5:
        lines.append(
            f"{1 - summary['prototypes_in_use']:.0%} of the prototypes were no crop's strongest code in this epoch: "
            f"try fewer model.prototypes{', a longer swav.queue or a larger run.batch_size' if swav else ''}"
        )
    return lines

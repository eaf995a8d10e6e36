"""Finds nearest images by cosine similarity, and counts how many share the query's class."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def nearest(
    gallery: Float[Tensor, "gallery features"], queries: Float[Tensor, "queries features"], count: int
) -> tuple[Float[Tensor, "queries count"], Int[Tensor, "queries count"]]:
    """Cosines and indices of each query's `count` nearest rows of the gallery, nearest first. Rows have unit length."""
    similarity, index = (queries @ gallery.T).topk(min(count, len(gallery)))
    return similarity, index


def retrieval_sums(
    gallery: Float[Tensor, "gallery features"],
    gallery_labels: Int[Tensor, " gallery"],
    queries: Float[Tensor, "queries features"],
    query_labels: Int[Tensor, " queries"],
    counts: list[int],
    chunk: int = 256,
) -> Float[Tensor, " figures"]:
    """Sums over the queries, to be divided by their number. For each k in `counts`: whether one of the k nearest images
    has the query's class (recall). Then for each k: the share of the k nearest that has it (precision). Last: average
    precision at R (Musgrave et al., ECCV 2020), where R is the number of gallery images of the class; 0 if R is 0."""
    classes, numbers = torch.cat([gallery_labels, query_labels]).unique(return_inverse=True)  # labels may be ids
    gallery_labels, query_labels = numbers.tensor_split([len(gallery)])
    sizes = torch.bincount(gallery_labels, minlength=len(classes))
    sums = torch.zeros(2 * len(counts) + 1, dtype=torch.float64, device=gallery.device)
    for part, expected in zip(queries.split(chunk), query_labels.split(chunk), strict=True):
        if not len(part):
            continue
        relevant = sizes[expected]
        _, index = nearest(gallery, part, max([*counts, int(relevant.max())]))
        right = (gallery_labels[index] == expected[:, None]).double()
        for position, count in enumerate(counts):
            sums[position] += right[:, :count].amax(1).sum()
            sums[len(counts) + position] += right[:, :count].mean(1).sum()
        rank = torch.arange(1, right.shape[1] + 1, device=right.device)
        within = right * (rank[None] <= relevant[:, None])
        precision = within.cumsum(1) / rank
        sums[-1] += ((precision * within).sum(1) / relevant.clamp(min=1)).sum()
    return sums

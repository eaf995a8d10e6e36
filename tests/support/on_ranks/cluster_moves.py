"""Run on ranks by tests of the clustering methods: set the prototypes as k-means does, then train."""

import torch

from model.optimizer.build import set_step
from perf.zero_ranks import BATCH, DIM, PROTOTYPES, Training
from support.on_ranks.zero_moves import start
from training.distributed import connected
from training.zero import full, write_parameter

HEAD = "projection_head.3.weight"


def set_prototypes(rank, case, port, results):
    """Set the prototypes to centroids and take steps with frozen prototypes. Puts into `results`
    (rank, network's error, masters' error, scores' error, whether the head moved)."""
    cluster = start(rank, case, port)
    centroids = torch.nn.functional.normalize(
        torch.randn(PROTOTYPES, DIM, generator=torch.Generator().manual_seed(7)), dim=1
    )
    with connected(cluster):
        training = Training(case, cluster)
        training.step(0)
        write_parameter(training.engine, training.optimizer, "prototypes.weight", centroids)
        head = masters(training, HEAD)
        for step in (1, 2):
            set_step(training.optimizer, 0.3, frozen_prototypes=True)
            embeddings, scores, *_ = training.engine(training._images(step), BATCH // case.ranks, None)
            training.engine.backward(-scores.log_softmax(-1)[..., 0].mean())
            training.engine.step()
        weight = training.network.prototypes.weight
        with full([weight]):
            network_error = float((weight.detach() - centroids).abs().max())
        pieces = masters(training, "prototypes.weight")
        errors = [float((piece - centroids.flatten()[at : at + len(piece)]).abs().max()) for at, piece in pieces]
        scores_error = float((scores.detach() - embeddings @ centroids.T).abs().max())
        moved = any(not torch.equal(a, b) for (_, a), (_, b) in zip(head, masters(training, HEAD), strict=True))
        results.put((rank, network_error, max(errors, default=0.0), scores_error, moved or not head))


def masters(training, name):
    """This rank's pieces of a parameter's masters: (start, values)."""
    layout = training.optimizer.layout
    return [
        (segment.start, piece.detach().reshape(-1).clone())
        for tensor, segments in layout.tensors.items()
        for segment, piece in zip(segments, layout.pieces(tensor, tensor.detach()), strict=True)
        if layout.names[segment.parameter] == name
    ]

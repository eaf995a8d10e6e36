"""k-means and the clustering methods' targets: against scikit-learn, and equal on any number of ranks."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch.nn import functional

from model.clustering.deepcluster import IGNORED, ITERATIONS, assigned_prediction, kmeans_targets, sinkhorn_targets
from model.clustering.kmeans import first_centroids, spherical_kmeans
from model.clustering.memory import Memory
from model.sinkhorn import sinkhorn
from support.ranks import run_ranks

IMAGES, DIM, CLUSTERS = 240, 8, 5


def blobs(seed=0, samples=IMAGES):
    """Unit vectors around five well separated directions, and the direction's number for each."""
    generator = torch.Generator().manual_seed(seed)
    middles = functional.normalize(torch.linalg.qr(torch.randn(DIM, DIM, generator=generator))[0][:CLUSTERS], dim=1)
    origin = torch.arange(samples) % CLUSTERS
    noise = 0.15 * torch.randn(samples, DIM, generator=generator)
    return functional.normalize(middles[origin] + noise, dim=1), origin


def test_the_assignments_are_scikit_learns():
    """In such narrow clusters the mean and the mean scaled to unit length have the same nearest samples."""
    embeddings, _ = blobs()
    start = embeddings[:CLUSTERS]
    assigned, centroids = spherical_kmeans(embeddings, start, 10)
    golden = KMeans(CLUSTERS, init=start.numpy(), n_init=1, max_iter=10, algorithm="lloyd").fit(embeddings.numpy())
    assert np.array_equal(assigned.numpy(), golden.labels_)
    means = functional.normalize(torch.as_tensor(golden.cluster_centers_), dim=1)
    assert torch.allclose(centroids, means, atol=1e-5)


def test_one_iteration_by_hand():
    embeddings = functional.normalize(torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.1, 1.0], [-0.1, 1.0]]), dim=1)
    start = functional.normalize(torch.tensor([[1.0, 0.2], [0.2, 1.0], [-1.0, -1.0]]), dim=1)
    assigned, centroids = spherical_kmeans(embeddings, start, 1)
    assert assigned.tolist() == [0, 0, 1, 1]
    assert torch.allclose(centroids[:2], torch.eye(2), atol=1e-6)
    assert torch.equal(centroids[2], start[2])  # it has no samples and stays


def test_the_first_centroids_are_distinct_samples_and_too_few_are_an_error():
    embeddings, _ = blobs()
    rows = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(1))
    actual = first_centroids(rows, embeddings, 7, IMAGES, (31, 0, 0))
    similar = (actual @ embeddings.T).argmax(1)
    assert torch.equal(actual, embeddings[similar]) and len(set(similar.tolist())) == 7
    assert not torch.equal(actual, first_centroids(rows, embeddings, 7, IMAGES, (31, 1, 0)))
    with pytest.raises(ValueError, match=r"300 centroids need as many samples, there are 240: lower model\.prototypes"):
        first_centroids(rows, embeddings, 300, 400, (31, 0, 0))


def filled(rank, ranks, crops=2, first=0):
    """This rank's share of two crops' blobs, rows in random order; the last 15 rows are in no memory."""
    rows = torch.randperm(IMAGES - 15, generator=torch.Generator().manual_seed(3 + ranks))[rank::ranks]
    memory = Memory(crops, len(rows), DIM)
    memory.add(rows, torch.stack([blobs(seed)[0][rows] for seed in range(crops)]))
    return memory


def targets_of(ranks, rank):
    """Both methods' targets and the centroids, on a rank."""
    memory = filled(rank, ranks)
    clusters, centroids = kmeans_targets(memory, IMAGES, 3, CLUSTERS, seed=31, epoch=4)
    return clusters.numpy(), centroids.numpy(), sinkhorn_targets(memory, IMAGES, 3, centroids, 0.05).numpy()


@pytest.mark.parametrize("ranks", [2, 4])
def test_targets_and_prototypes_do_not_depend_on_the_number_of_ranks(ranks):
    clusters, centroids, codes = targets_of(1, 0)
    for actual in run_ranks(list(range(ranks)), partial(targets_of, ranks)):
        assert np.array_equal(actual[0], clusters)
        assert np.allclose(actual[1], centroids, atol=1e-6)
        assert np.array_equal(actual[2], codes)


def test_clusters_are_the_blobs_and_rows_without_a_memory_are_ignored():
    clusters, centroids, codes = targets_of(1, 0)
    origin = blobs()[1].numpy()
    for actual in (*clusters, *codes):
        assert (actual[-15:] == IGNORED).all() and (actual[:-15] >= 0).all()
    first = [{clusters[0][row] for row in range(IMAGES - 15) if origin[row] == blob} for blob in range(CLUSTERS)]
    assert all(len(names) <= 2 for names in first)  # a random start may split or merge, never scatter
    assert np.allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)
    assert np.bincount(codes[0][:-15], minlength=CLUSTERS).max() <= 1.4 * (IMAGES - 15) / CLUSTERS  # balanced


def test_heads_take_the_crops_memories_in_turn():
    memory = filled(0, 1)
    clusters, centroids = kmeans_targets(memory, IMAGES, 3, CLUSTERS, seed=31, epoch=4)
    for head, crop in enumerate((0, 1, 0)):
        start = first_centroids(memory.rows, memory.embeddings[crop], CLUSTERS, IMAGES, (31, 4, head))
        assigned, actual = spherical_kmeans(memory.embeddings[crop], start)
        assert torch.equal(clusters[head][memory.rows], assigned)
        assert torch.equal(centroids[head * CLUSTERS : (head + 1) * CLUSTERS], actual)


def test_progress_is_reported_after_each_iteration_and_each_head():
    memory, ticks = filled(0, 1), []
    _, centroids = kmeans_targets(memory, IMAGES, 3, CLUSTERS, seed=31, epoch=4, tick=lambda: ticks.append("k-means"))
    sinkhorn_targets(memory, IMAGES, 3, centroids, 0.05, tick=lambda: ticks.append("head"))
    assert ticks == ["k-means"] * 3 * ITERATIONS + ["head"] * 3


def test_selav2_takes_the_strongest_code_of_sinkhorn_over_the_whole_memory():
    memory = filled(0, 1)
    prototypes = functional.normalize(torch.randn(6, DIM, generator=torch.Generator().manual_seed(9)), dim=1)
    targets = sinkhorn_targets(memory, IMAGES, 2, prototypes, 0.05)
    codes = sinkhorn(memory.embeddings[1] @ prototypes[3:].T, 0.05, 3)
    assert torch.equal(targets[1][memory.rows], codes.argmax(1))


def test_the_loss_is_the_mean_cross_entropy_in_which_rows_without_a_target_count_as_0():
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(4, 3, 2 * 5, generator=generator).requires_grad_()
    targets = torch.tensor([[0, IGNORED, 4], [2, IGNORED, 1]])
    by_hand = [
        -torch.log_softmax(scores[crop, row, 5 * head : 5 * head + 5] / 0.1, dim=0)[targets[head, row]]
        for head in range(2)
        for crop in range(4)
        for row in (0, 2)
    ]
    loss = assigned_prediction(targets, scores, 0.1)
    assert loss.item() == pytest.approx(torch.stack(by_hand).sum().item() / (2 * 4 * 3), rel=1e-6)
    halves = [assigned_prediction(targets[:, part], scores[:, part], 0.1) for part in (slice(0, 2), slice(2, 3))]
    assert loss.item() == pytest.approx((2 * halves[0] + halves[1]).item() / 3, rel=1e-6)  # for any split of the batch
    loss.backward()
    assert not scores.grad[:, 1].any() and scores.grad[:, 0].all()
    without_targets = assigned_prediction(torch.full((2, 3), IGNORED), scores, 0.1)
    assert without_targets.item() == 0
    uniform = assigned_prediction(targets[:, ::2], torch.zeros(4, 2, 10), 0.1)
    assert uniform.item() == pytest.approx(math.log(5))


def test_a_memory_is_redistributed_to_another_number_of_ranks():
    whole = filled(0, 1)
    halves = [Memory(2, 200, DIM) for _ in range(2)]
    for rank, half in enumerate(halves):
        half.load_state_tensors([whole.state_tensors()], rank, 2)
    assert sorted([*halves[0].rows.tolist(), *halves[1].rows.tolist()]) == sorted(whole.rows.tolist())
    again = Memory(2, IMAGES, DIM)
    again.load_state_tensors([half.state_tensors() for half in halves])
    order, expected = again.rows.argsort(), whole.rows.argsort()
    assert torch.equal(again.embeddings[:, order], whole.embeddings[:, expected])
    with pytest.raises(ValueError, match="226 samples do not fit into a memory of 225"):
        whole.add(torch.tensor([3]), torch.zeros(2, 1, DIM))

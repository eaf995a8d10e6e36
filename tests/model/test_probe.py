"""The linear probe that learns while the network does."""

import numpy as np
import torch
from torch.nn import functional

from model.probe import LEARNING_RATE, MOMENTUM, Probe
from support.ranks import run_ranks

CLASSES, FEATURES, IMAGES = 3, 12, 240


def data(seed=0):
    """Features with large common values and small differences between classes; and the classes."""
    noise = np.random.default_rng(seed)
    labels = noise.integers(0, CLASSES, IMAGES)
    middles = 5 + 0.5 * noise.normal(size=(CLASSES, FEATURES))
    return torch.tensor(middles[labels] + 0.2 * noise.normal(size=(IMAGES, FEATURES))).float(), labels


def trained_probe(epochs=10, batch=24, labels=None, features=None):
    own_features, own_labels = data()
    probe = Probe(own_labels if labels is None else labels, CLASSES, FEATURES)
    order = np.random.default_rng(1)
    for _ in range(epochs):
        for rows in order.permutation(IMAGES).reshape(-1, batch):
            probe.update((own_features if features is None else features)[rows], rows)
    return probe


def test_it_separates_classes_that_differ_little():
    probe, (features, labels) = trained_probe(), data()
    assert (probe.classify(features).numpy() == labels).mean() > 0.95
    assert trained_probe(0).classify(features).unique().tolist() == [0]


def test_its_first_step_is_that_of_autograd():
    """The running statistics are those of a unit vector then: mean 0, variance 1 / features."""
    features, labels = data()
    probe, rows = Probe(labels, CLASSES, FEATURES), np.arange(50)
    probe.update(features[rows], rows)
    weight = torch.zeros(CLASSES, FEATURES + 1, requires_grad=True)
    inputs = torch.cat([functional.normalize(features[rows]) / (1 + 1e-5) ** 0.5, torch.ones(50, 1)], dim=1)
    functional.cross_entropy(inputs @ weight.T, torch.tensor(labels[rows])).backward()
    torch.testing.assert_close(probe.state["weight"], -LEARNING_RATE * weight.grad)
    probe.update(features[rows], rows)
    assert not torch.allclose(probe.state["velocity"], weight.grad * MOMENTUM)


def test_its_running_mean_and_variance_are_those_of_all_rows_seen():
    features, _ = data()
    probe = trained_probe(epochs=1)
    unit = functional.normalize(features)
    torch.testing.assert_close(probe.state["mean"], unit.mean(0))
    torch.testing.assert_close(probe.state["variance"], unit.var(0, correction=0))


def test_rows_without_a_label_change_nothing_and_do_not_count():
    features, labels = data()
    some = labels.copy()
    some[::2] = -1
    probe = Probe(some, CLASSES, FEATURES)
    rows = np.arange(40)
    probe.update(features[rows], rows)
    alone = Probe(labels, CLASSES, FEATURES)
    alone.update(features[rows[1::2]], rows[1::2])
    torch.testing.assert_close(probe.state["weight"], alone.state["weight"])
    nothing = Probe(np.full(IMAGES, -1), CLASSES, FEATURES)
    nothing.update(features[rows], rows)
    assert not nothing.state["weight"].any()
    assert nothing.summary() == {}
    assert probe.state["seen"].tolist()[1] == 20


def test_the_training_accuracy_is_measured_before_each_image_trains_the_probe():
    features, labels = data()
    probe, right = Probe(labels, CLASSES, FEATURES), 0
    for rows in np.arange(IMAGES).reshape(-1, 24):
        right += int((probe.classify(features[rows]).numpy() == labels[rows]).sum())
        probe.update(features[rows], rows)
    assert probe.summary() == {"probe_train": right / IMAGES}
    assert probe.summary() == {}


def two_halves(share):
    rank, world = share
    features, labels = data()
    probe = Probe(labels, CLASSES, FEATURES)
    for rows in np.arange(IMAGES).reshape(-1, 24):
        mine = rows[rank::world]
        probe.update(features[mine], mine)
    return {name: value.numpy() for name, value in probe.state.items()} | probe.summary()


def test_any_number_of_ranks_learns_the_same():
    """All ranks hold the same bits; they differ from a single rank's only by the order of sums."""
    one, (first, second) = two_halves((0, 1)), run_ranks([(0, 2), (1, 2)], two_halves)
    for name, values in one.items():
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], values, atol=2e-4)


def test_it_continues_from_its_saved_state_exactly():
    features, labels = data()
    straight = Probe(labels, CLASSES, FEATURES)
    before = Probe(labels, CLASSES, FEATURES)
    batches = np.arange(IMAGES).reshape(-1, 24)
    for rows in batches:
        straight.update(features[rows], rows)
    for rows in batches[:4]:
        before.update(features[rows], rows)
    after = Probe(labels, CLASSES, FEATURES)
    after.load_state_tensors([before.state_tensors()])
    for rows in batches[4:]:
        after.update(features[rows], rows)
    for name, value in straight.state.items():
        assert torch.equal(value, after.state[name])

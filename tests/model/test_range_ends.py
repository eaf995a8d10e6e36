"""At the ends of the ranges of settings every function gives what float64 gives, or refuses."""

import math
from argparse import Namespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from config.schema.ranges import alternatives, own_limits
from config.schema.settings import settings as all_settings
from evaluation.arguments import check_number, numbers
from launch.restart import restart_delay
from model.clustering.deepcluster import assigned_prediction
from model.clustering.kmeans import spherical_kmeans
from model.loss import swapped_prediction
from model.monitor import loss_of_a_guess
from model.nearest import predict
from model.optimizer.adamw import AdamW
from model.optimizer.build import build_optimizer
from model.optimizer.lars import LARS
from model.optimizer.schedule import warmup_cosine
from model.optimizer.segments import unit_rows_
from model.probe import LEARNING_RATE, MOMENTUM, Probe
from model.queue import EmbeddingQueue
from model.sinkhorn import hard_codes, sinkhorn
from model.swav import SwAV
from model.teacher import Teacher, momentum_at

EPS = np.finfo(np.float32).eps
TINY, HUGE = 5e-324, 1.7976931348623157e308
ENDS = [TINY, 1e-300, 1e-45, 1e-38, 1e-12, 1e-3, 0.1, 1.0, 1e3, 1e12, 1e38, 1e300, HUGE]
POSITIVE = st.sampled_from(ENDS) | st.floats(TINY, HUGE)
NOT_NEGATIVE = st.just(0.0) | POSITIVE
BELOW_ONE = st.sampled_from([0.0, TINY, 0.5, 0.9, 1 - 1e-8, math.nextafter(1, 0)]) | st.floats(0, 1, exclude_max=True)
SEEDS = st.integers(0, 2**31)


def range_of(key):
    """A strategy for the numbers that a setting takes, both ends included."""
    limits = [one for _, metadata in alternatives(all_settings()[key].annotation) for one in own_limits(metadata)]
    low = max(TINY if one.ge is None and one.gt is not None else one.ge or 0.0 for one in limits)
    high = min(HUGE if one.le is None else one.le for one in limits)
    high = min([high, *(math.nextafter(one.lt, 0) for one in limits if one.lt is not None)])
    return st.sampled_from([low, high, *(value for value in ENDS if low <= value <= high)])


def unit_vectors(noise, *shape):
    values = noise.normal(size=shape)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


# ---- codes and losses


def textbook(scores, epsilon, iterations):
    """Sinkhorn-Knopp in float64 with logarithms: [samples, prototypes]."""
    with np.errstate(over="ignore"):
        log_plan = scores.astype(np.float64) / epsilon
    for _ in range(iterations):
        log_plan = log_plan - np.logaddexp.reduce(log_plan, axis=0, keepdims=True)
        log_plan = log_plan - np.logaddexp.reduce(log_plan, axis=1, keepdims=True)
    return np.exp(log_plan)


@settings(max_examples=40, deadline=None)
@given(
    epsilon=range_of("swav.epsilon"),
    samples=st.integers(1, 9),
    prototypes=st.integers(1, 9),
    check=st.booleans(),
    seed=SEEDS,
)
def test_codes_for_every_epsilon_of_a_recipe(epsilon, samples, prototypes, check, seed):
    scores = np.random.default_rng(seed).uniform(-1, 1, (samples, prototypes)).astype(np.float32)
    codes = sinkhorn(torch.from_numpy(scores), epsilon, 3, check=check).numpy()
    np.testing.assert_allclose(codes, textbook(scores, epsilon, 3), rtol=0, atol=2e-6 + 2e-7 / epsilon)
    np.testing.assert_allclose(codes.sum(1), 1, rtol=0, atol=1e-5)
    assert hard_codes(torch.from_numpy(codes)).sum(1).tolist() == [1.0] * samples


@settings(max_examples=40, deadline=None)
@given(epsilon=POSITIVE, size=POSITIVE, double=st.booleans(), seed=SEEDS)
def test_codes_of_any_scores_and_epsilon_are_finite_or_refused(epsilon, size, double, seed):
    with np.errstate(over="ignore"):
        scores = np.random.default_rng(seed).uniform(-1, 1, (6, 4)) * size
        scores = scores if double else scores.astype(np.float32)
        representable = np.isfinite(scores).all() and np.abs(scores).max() <= HUGE / 4 * min(epsilon, 1.0)
    if representable:
        codes = sinkhorn(torch.from_numpy(scores), epsilon, 3)
        np.testing.assert_allclose(codes.sum(-1).numpy(), 1, rtol=0, atol=1e-5)
    else:
        with pytest.raises(FloatingPointError, match="no codes"):
            sinkhorn(torch.from_numpy(scores), epsilon, 3)


@pytest.mark.parametrize(("epsilon", "check"), [(math.nan, True), (math.inf, True), (0.001, False)])
def test_an_epsilon_without_codes_is_refused(epsilon, check):
    with pytest.raises(ValueError, match="epsilon"):
        sinkhorn(torch.zeros(4, 5), epsilon, 3, check=check)


@settings(max_examples=30, deadline=None)
@given(temperature=range_of("swav.temperature"), prototypes=st.integers(1, 9), heads=st.integers(1, 2), seed=SEEDS)
def test_losses_and_their_gradients_for_every_temperature(temperature, prototypes, heads, seed):
    noise = np.random.default_rng(seed)
    values = noise.uniform(-1, 1, (3, 4, heads * prototypes)).astype(np.float32)
    scores = torch.from_numpy(values).requires_grad_()
    codes = torch.from_numpy(noise.dirichlet(np.ones(prototypes), (2, 4, heads)).reshape(2, 4, -1)).float()
    targets = torch.from_numpy(noise.integers(0, prototypes, (heads, 4)))

    logits = (values.astype(np.float64) / temperature).reshape(3, 4, heads, prototypes)
    logs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    each = codes.double().numpy().reshape(2, 4, heads, prototypes)
    pairs = [(0, 1), (0, 2), (1, 0), (1, 2)]
    swapped = np.mean([-(each[code] * logs[crop]).sum(-1) for code, crop in pairs])
    assigned = -np.take_along_axis(logs, targets.numpy().T[None, :, :, None].repeat(3, 0), axis=-1).mean()

    for loss, expected in (
        (swapped_prediction(codes, scores, (0, 1), temperature, heads), swapped),
        (assigned_prediction(targets, scores, temperature), assigned),
    ):
        assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
        (gradient,) = torch.autograd.grad(loss, scores)
        assert gradient.isfinite().all() and gradient.abs().max() <= 1.01 / temperature


@settings(max_examples=40, deadline=None)
@given(prototypes=st.integers(1, 10**6), dim=st.integers(1, 10**4), temperature=POSITIVE)
def test_the_loss_of_a_guess_is_a_number_for_every_temperature(prototypes, dim, temperature):
    bound = loss_of_a_guess(prototypes, dim, temperature)
    assert bound >= math.log(prototypes) and not math.isnan(bound)


# ---- optimizers and schedules


def lars_in_float64(parameter, gradients, rate, momentum, decay, trust, eps=1e-8):
    p, v = parameter.astype(np.longdouble), 0.0
    for g in gradients.astype(np.longdouble):
        sizes = np.sqrt((p * p).sum()), np.sqrt((g * g).sum())
        scale, decayed = (np.longdouble(trust) * sizes[0] / (sizes[1] + np.longdouble(decay) * sizes[0] + eps), decay)
        if not (sizes[0] > 0 and sizes[1] > 0):
            scale, decayed = 1.0, 0.0
        v = np.longdouble(momentum) * v + scale * (g + np.longdouble(decayed) * p)
        p = p - np.longdouble(rate) * v
    return p


@settings(max_examples=40, deadline=None)
@given(
    rate=st.sampled_from([TINY, 1e-38, 1e-8, 0.1, 10.0]),
    momentum=BELOW_ONE,
    decay=NOT_NEGATIVE,
    trust=st.sampled_from([TINY, 1e-30, 1e-3, 1.0]),
    sizes=st.tuples(*2 * [st.sampled_from([0.0, 1e-30, 1e-22, 1e-8, 1.0, 1e8, 1e19, 1e25])]),
    seed=SEEDS,
)
@example(rate=0.1, momentum=0.0, decay=0.0, trust=1e-3, sizes=(1e-22, 1e19), seed=0)  # a ratio of 1e-44
def test_lars_steps_at_the_ends_of_its_settings_and_gradients(rate, momentum, decay, trust, sizes, seed):
    noise = np.random.default_rng(seed)
    start = (noise.normal(size=1100) * sizes[0]).astype(np.float32)
    gradients = (noise.normal(size=(2, 1100)) * sizes[1]).astype(np.float32)
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = LARS([parameter], rate, momentum, decay, trust)
    for gradient in gradients:
        parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
    expected = lars_in_float64(start, gradients, rate, momentum, decay, trust)
    moved = np.abs(expected - start).max()
    difference = np.abs(parameter.detach().numpy().astype(np.longdouble) - expected).max()
    # The trust ratio is a float32, which has few digits below 1e-38; two steps add up to three of its roundings.
    few_digits = 3 * np.longdouble(rate) * np.finfo(np.float32).smallest_subnormal * np.abs(gradients).max()
    assert difference <= 1e-5 * moved + 2 * EPS * np.abs(expected).max() + few_digits + 1e-30


@settings(max_examples=30, deadline=None)
@given(
    rate=st.sampled_from([TINY, 1e-8, 1e-3, 1.0]),
    betas=st.tuples(BELOW_ONE, BELOW_ONE),
    decay=st.sampled_from([0.0, TINY, 1e-6, 0.5]),
    size=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=SEEDS,
)
def test_adamw_steps_at_the_ends_of_its_settings(rate, betas, decay, size, seed):
    noise = np.random.default_rng(seed)
    start, gradients = noise.normal(size=20), noise.normal(size=(3, 20)) * size
    steps = []
    for dtype in (torch.float32, torch.float64):
        parameter = torch.nn.Parameter(torch.tensor(start, dtype=dtype))
        optimizer = AdamW([{"params": [parameter]}], lr=rate, betas=betas, weight_decay=decay)
        for gradient in gradients:
            parameter.grad = torch.tensor(gradient, dtype=dtype)
            optimizer.step()
        steps.append(parameter.detach().numpy().astype(np.float64))
    first, second, p = np.zeros(20), np.zeros(20), start.copy()
    for count, g in enumerate(gradients, 1):
        first, second = betas[0] * first + (1 - betas[0]) * g, betas[1] * second + (1 - betas[1]) * g * g
        corrections = 1 - betas[0] ** count, 1 - betas[1] ** count
        p = p * (1 - rate * decay) - rate * first / corrections[0] / (np.sqrt(second / corrections[1]) + 1e-8)
    moved = np.abs(p - start).max()
    np.testing.assert_allclose(steps[1], p, rtol=0, atol=1e-9 * moved + 1e-15)
    np.testing.assert_allclose(steps[0], p, rtol=0, atol=1e-4 * moved + 1e-6)


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(["lars", "adamw", "muon"]), values=st.data())
def test_every_setting_that_a_recipe_may_have_takes_a_step(name, values):
    """Parameters may leave the range of numbers, at which training stops; no step fails."""
    keys = ("base_lr", "weight_decay", "trust_coefficient", "momentum", "muon_momentum")
    recipe = {key: values.draw(range_of(f"optimizer.{key}"), key) for key in keys}
    betas = [values.draw(st.sampled_from([0.0, TINY, 0.9, 0.9999999])) for _ in range(2)]
    recipe |= {
        "name": name,
        "betas": betas,
        "layer_decay": 1.0,
        "backbone_lr_scale": 1.0,
        "exclude_1d": values.draw(st.booleans()),
    }
    network = torch.nn.ModuleDict({"backbone": torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))})
    optimizer = build_optimizer(Namespace(**recipe), network)
    for _ in range(2):
        network["backbone"](torch.ones(1, 3)).sum().backward()
        optimizer.step()


@settings(max_examples=40, deadline=None)
@given(
    steps=st.integers(1, 20),
    epochs=st.integers(1, 20),
    share=st.floats(0, 1),
    start=NOT_NEGATIVE,
    base=POSITIVE,
    falls=st.floats(0, 1),
)
@example(steps=1, epochs=1, share=0.0, start=0.0, base=np.finfo(np.float64).max, falls=0.375)
def test_learning_rates_are_those_of_the_formula(steps, epochs, share, start, base, falls):
    final = base * falls
    rates = warmup_cosine(steps, epochs, share * epochs, start, base, final)
    warmup, total = round(steps * share * epochs), steps * epochs
    assert len(rates) == total and np.isfinite(rates).all()
    for step, rate in enumerate(rates.tolist()):
        if step < warmup:
            along = step / (warmup - 1) if warmup > 1 else 0.0
            expected = start * (1 - along) + base * along
        else:
            along = (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
            expected = final * (1 - along) + base * along
        assert rate == pytest.approx(expected, rel=1e-9, abs=1e-12 * max(start, base) + 1e-320)


@settings(max_examples=30, deadline=None)
@given(first=BELOW_ONE, share=st.floats(0, 1), steps=st.integers(1, 10**9), at=st.floats(0, 1))
def test_a_teachers_momentum_stays_between_its_ends(first, share, steps, at):
    final = min(1.0, first + share * (1 - first))
    assert momentum_at(0, steps, first, final) == pytest.approx(first, abs=1e-15)
    assert momentum_at(steps, steps, first, final) == final
    assert first - 1e-15 <= momentum_at(round(at * steps), steps, first, final) <= final


@settings(max_examples=20, deadline=None)
@given(momentum=BELOW_ONE | st.just(1.0), seed=SEEDS)
def test_a_teacher_is_the_weighted_mean_at_every_momentum(momentum, seed):
    torch.manual_seed(seed)
    backbone = torch.nn.Linear(3, 4)
    backbone.feature_dim = 4
    network = SwAV(backbone, 0, 3, 5)
    teacher = Teacher(network, (0,))
    before = [p.double().clone() for p in teacher.network.parameters()]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    teacher.follow(network, momentum)
    for (name, average), old, new in zip(teacher.network.named_parameters(), before, network.parameters(), strict=True):
        expected = momentum * old + (1 - momentum) * new.detach().double()
        if name.startswith("prototypes"):
            expected = torch.nn.functional.normalize(expected, dim=1)
        torch.testing.assert_close(average.double(), expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(size=st.sampled_from([0.0, 1e-30, 1e-20, 1e-12, 1.0, 1e20, 1e30]), double=st.booleans(), seed=SEEDS)
def test_rows_have_unit_length_or_stay_zero(size, double, seed):
    rows = np.random.default_rng(seed).normal(size=(3, 5)) * size
    weight = torch.from_numpy(rows if double else rows.astype(np.float32))
    unit_rows_(weight)
    expected = rows / (np.linalg.norm(rows, axis=1, keepdims=True) if size else 1.0)
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-5, atol=1e-7)


# ---- clusters, queue, probe and neighbors


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(1, 12), count=st.integers(1, 12), iterations=st.integers(0, 3), seed=SEEDS)
def test_clusters_of_few_samples_are_those_of_float64(samples, count, iterations, seed):
    noise = np.random.default_rng(seed)
    points, middles = unit_vectors(noise, samples, 5), unit_vectors(noise, count, 5)
    both = [
        spherical_kmeans(*(torch.tensor(x, dtype=d) for x in (points, middles)), iterations)
        for d in (torch.float32, torch.float64)
    ]
    expected = middles.copy()
    for step in range(iterations + 1):
        nearest = (points @ expected.T).argmax(1)
        if step < iterations:
            for cluster in set(nearest.tolist()):
                total = points[nearest == cluster].sum(0)
                expected[cluster] = total / np.linalg.norm(total)
    assert both[1][0].tolist() == both[0][0].tolist() == nearest.tolist()
    np.testing.assert_allclose(both[1][1], expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(both[0][1], expected, rtol=0, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 6), pushes=st.integers(0, 5), data=st.data())
def test_a_queue_of_any_length_holds_the_newest_rows(length, pushes, data):
    batch = data.draw(st.integers(1, length))
    queue, rows = EmbeddingQueue(1, length, 1, global_batch=batch), []
    for number in range(pushes):
        values = torch.arange(1.0, batch + 1)[None, :, None] + 100 * number
        queue.push(values)
        rows = [*values.flatten().tolist(), *rows][:length]
    held = queue.queued()
    assert (held is None) == (len(rows) < length)
    assert held is None or held.flatten().tolist() == rows


@settings(max_examples=20, deadline=None)
@given(
    images=st.integers(1, 9),
    classes=st.integers(1, 4),
    features=st.integers(1, 5),
    steps=st.integers(1, 12),
    seed=SEEDS,
)
def test_a_probe_of_few_images_learns_as_in_float64(images, classes, features, steps, seed):
    noise = np.random.default_rng(seed)
    labels = noise.integers(-1, classes, images)
    values, rows = noise.normal(size=(images, features)).astype(np.float32), np.arange(images)
    probe = Probe(labels, classes, features)
    weight, velocity = np.zeros((classes, features + 1)), np.zeros((classes, features + 1))
    mean, variance = np.zeros(features), np.full(features, 1 / features)
    unit = values.astype(np.float64) / np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    known = labels >= 0
    for step in range(steps):
        probe.update(torch.from_numpy(values), rows)
        inputs = (unit - mean) / np.sqrt(features * (variance + 1e-5 / features))
        inputs = np.concatenate([inputs, np.ones((images, 1))], axis=1)
        logits = inputs @ weight.T
        error = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
        error[known, labels[known]] -= 1
        velocity = MOMENTUM * velocity + (error[known].T @ inputs[known]) / max(known.sum(), 1)
        weight = weight - LEARNING_RATE * velocity
        share, away = max(1 / (step + 1), 0.01), unit - mean
        shift = share * away.mean(0)
        mean, variance = mean + shift, variance * (1 - share) + share * (away**2).mean(0) - shift**2
    np.testing.assert_allclose(
        probe.state["weight"].numpy(), weight, rtol=1e-2, atol=1e-2 * max(1.0, np.abs(weight).max())
    )
    assert probe.classify(torch.from_numpy(values)).max() < classes


@settings(max_examples=30, deadline=None)
@given(temperature=POSITIVE, k=st.integers(1, 12), classes=st.integers(1, 4), seed=SEEDS)
def test_neighbors_vote_at_every_temperature(temperature, k, classes, seed):
    noise = np.random.default_rng(seed)
    bank, queries = unit_vectors(noise, 10, 6).astype(np.float32), unit_vectors(noise, 5, 6).astype(np.float32)
    labels = noise.integers(0, classes, 10)
    predicted = predict(torch.from_numpy(bank), torch.from_numpy(labels), torch.from_numpy(queries), k, temperature)
    similarity = (torch.from_numpy(queries) @ torch.from_numpy(bank).T).numpy().astype(np.longdouble)
    for query, answer in zip(similarity, predicted.tolist(), strict=True):
        nearest = np.argsort(-query, kind="stable")[:k]
        weights = np.exp((query[nearest] - query[nearest[0]]) / np.longdouble(temperature))
        votes = [weights[labels[nearest] == one].sum() for one in range(classes)]
        assert votes[answer] == pytest.approx(max(votes), rel=1e-9)


# ---- programs


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -1.0])
def test_options_take_finite_numbers_only(value):
    with pytest.raises(ValueError, match="--lr="):
        check_number(Namespace(lr=value), "lr")
    with pytest.raises(ValueError, match="--lr="):
        numbers("--lr", f"0.1,{value}")


@given(attempt=st.integers(1, 10**9), backoff=st.integers(0, 10**400))
def test_a_pause_is_at_most_five_minutes(attempt, backoff):
    assert restart_delay(attempt, backoff) == min(300, backoff * 2 ** min(attempt - 1, 20))

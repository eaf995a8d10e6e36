"""Codes are the published ones, for any number of ranks, range of scores and precision."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.sinkhorn import sinkhorn
from perf.sinkhorn.textbook import textbook_codes
from support.ranks import count_collectives, run_ranks

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "sinkhorn.npz")


def codes_of(task: tuple[np.ndarray, float, int]) -> np.ndarray:
    scores, epsilon, iterations = task
    return sinkhorn(torch.from_numpy(scores), epsilon, iterations).numpy()


def errors_of(batches: list[np.ndarray]) -> list[str]:
    messages = []
    for scores in batches:
        with pytest.raises(FloatingPointError) as error:
            sinkhorn(torch.from_numpy(scores), 0.05, 3)
        messages.append(str(error.value))
    return messages


def collectives_of(scores: np.ndarray) -> list[str]:
    calls = count_collectives()
    sinkhorn(torch.from_numpy(scores), 0.05, 3)
    return calls


def textbook(scores: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    """Both normalizations in turn, float64 logarithms, one process: [samples, prototypes]."""
    log_plan = scores.astype(np.float64) / epsilon
    for _ in range(iterations):
        log_plan = log_plan - np.logaddexp.reduce(log_plan, axis=0, keepdims=True)
        log_plan = log_plan - np.logaddexp.reduce(log_plan, axis=1, keepdims=True)
    return np.exp(log_plan)


def cosines(seed: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(seed).uniform(-1, 1, size=shape).astype(np.float32)


def unchecked_of(scores: np.ndarray) -> np.ndarray:
    return sinkhorn(torch.from_numpy(scores), 0.05, 3, check=False).numpy()


def unchecked_collectives_of(scores: np.ndarray) -> list[str]:
    calls = count_collectives()
    sinkhorn(torch.from_numpy(scores), 0.05, 3, check=False)
    return calls


# ---- claims ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(5))
def test_codes_are_the_published_ones(case: int) -> None:
    scores, expected = GOLDEN[f"case{case}_scores"], GOLDEN[f"case{case}_codes"]
    epsilon, iterations = GOLDEN[f"case{case}_eps_iters"]
    codes = run_ranks([(rows, float(epsilon), int(iterations)) for rows in scores], codes_of)
    np.testing.assert_allclose(np.stack(codes), expected, rtol=0, atol=1e-5)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    crops=st.integers(1, 3),
    shares=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    prototypes=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_codes_do_not_depend_on_world_size(crops: int, shares: list[int], prototypes: int, seed: int) -> None:
    scores = cosines(seed, crops, sum(shares), prototypes)
    alone = codes_of((scores, 0.05, 3))
    parts = np.split(scores, np.cumsum(shares)[:-1], axis=1)
    together = np.concatenate(run_ranks([(part, 0.05, 3) for part in parts], codes_of), axis=1)
    np.testing.assert_allclose(together, alone, rtol=0, atol=2e-6)


def test_both_crops_together_take_exactly_three_collectives() -> None:
    scores = [cosines(rank, 2, 8, 30) for rank in range(2)]
    assert run_ranks(scores, collectives_of) == [["all_reduce"] * 3] * 2


def test_unbounded_scores_on_one_rank_take_two_more_collectives_on_all_ranks() -> None:
    scores = [cosines(0, 2, 8, 30), 100 * cosines(1, 2, 8, 30)]
    assert run_ranks(scores, collectives_of) == [["all_reduce"] * 5] * 2


def test_a_bad_score_on_one_rank_is_an_error_on_every_rank() -> None:
    good = [cosines(0, 2, 4, 10) for _ in range(3)]
    bad = [scores.copy() for scores in good]
    for scores, value in zip(bad, (np.nan, np.inf, -np.inf), strict=True):
        scores[0, 2, 3] = value
    messages = run_ranks([good, bad], errors_of)
    assert messages == [["1 scores over all ranks are NaN or infinite: no codes"] * 3] * 2


def test_unbounded_scores_on_one_rank_give_the_codes_of_a_float64_reference() -> None:
    scores = np.concatenate([cosines(0, 5, 12), 60 * cosines(1, 5, 12)])
    codes = np.concatenate(run_ranks([(part, 0.05, 3) for part in np.split(scores, 2)], codes_of))
    np.testing.assert_allclose(codes, textbook(scores, 0.05, 3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.05, 0.01, 0.003, 0.001])
@pytest.mark.parametrize("offset", [0.0, 1.0, -1.0, 8.0, -30.0])
def test_codes_are_those_of_a_float64_reference_at_any_offset(epsilon: float, offset: float) -> None:
    scores = cosines(3, 20, 12) + np.float32(offset)
    np.testing.assert_allclose(codes_of((scores, epsilon, 3)), textbook(scores, epsilon, 3), rtol=0, atol=2e-4)


@pytest.mark.parametrize("shape", [(8, 5), (1, 30), (4, 300), (2, 6, 10), (2, 1, 1)])
@pytest.mark.parametrize("epsilon", [0.05, 0.01])
@pytest.mark.parametrize("size", [0.0, 1.0, 30.0, 1e4, 1e38])
def test_extreme_scores_give_finite_codes_that_sum_to_one(shape: tuple[int, ...], epsilon: float, size: float) -> None:
    codes = codes_of((cosines(0, *shape) * np.float32(size), epsilon, 3))
    assert codes.shape == shape and codes.dtype == np.float32
    np.testing.assert_allclose(codes.sum(axis=-1), 1, rtol=0, atol=1e-5)


def test_crops_are_balanced_separately() -> None:
    scores = cosines(0, 2, 16, 30)
    apart = np.stack([codes_of((crop, 0.05, 3)) for crop in scores])
    np.testing.assert_allclose(codes_of((scores, 0.05, 3)), apart, rtol=0, atol=1e-6)


def test_a_constant_per_prototype_changes_nothing_and_one_per_sample_does() -> None:
    scores, plain = cosines(0, 16, 30) / 2, codes_of((cosines(0, 16, 30) / 2, 0.05, 3))
    per_prototype = codes_of((scores + cosines(1, 1, 30) / 2, 0.05, 3))
    per_sample = codes_of((scores + cosines(1, 16, 1) / 2, 0.05, 3))
    np.testing.assert_allclose(per_prototype, plain, rtol=0, atol=1e-5)
    assert np.abs(per_sample - plain).max() > 0.01


def test_autocast_around_it_changes_nothing() -> None:
    scores = torch.from_numpy(cosines(0, 2, 16, 30))
    with torch.autocast("cpu", torch.bfloat16):
        inside = sinkhorn(scores, 0.05, 3)
    assert torch.equal(inside, sinkhorn(scores, 0.05, 3))


def test_half_precision_scores_are_computed_in_float32() -> None:
    scores = torch.from_numpy(cosines(0, 16, 30)).half()
    assert torch.equal(sinkhorn(scores, 0.05, 3), sinkhorn(scores.float(), 0.05, 3))


def test_float64_scores_are_computed_in_float64() -> None:
    scores = cosines(0, 16, 30).astype(np.float64)
    np.testing.assert_allclose(codes_of((scores, 0.05, 3)), textbook(scores, 0.05, 3), rtol=1e-12)


def test_codes_carry_no_gradient() -> None:
    assert not sinkhorn(torch.zeros(4, 5, requires_grad=True), 0.05, 3).requires_grad


@pytest.mark.parametrize(("epsilon", "iterations"), [(0.0, 3), (-0.05, 3), (0.05, 0)])
def test_settings_without_meaning_are_refused(epsilon: float, iterations: int) -> None:
    with pytest.raises(ValueError, match="epsilon > 0 and iterations >= 1"):
        sinkhorn(torch.zeros(4, 5), epsilon, iterations)


@settings(max_examples=60, deadline=None)
@given(
    epsilon=st.sampled_from([1.0, 0.1, 0.05, 0.0287, 0.0285, 0.02, 0.01, 0.003, 0.0017]),
    crops=st.integers(1, 3),
    samples=st.integers(1, 40),
    prototypes=st.integers(1, 60),
    iterations=st.integers(1, 5),
    check=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_cosines_give_the_codes_of_a_float64_reference(
    epsilon: float, crops: int, samples: int, prototypes: int, iterations: int, check: bool, seed: int
) -> None:
    scores = cosines(seed, crops, samples, prototypes)
    expected = np.stack([textbook(crop, epsilon, iterations) for crop in scores])
    codes = sinkhorn(torch.from_numpy(scores), epsilon, iterations, check=check).numpy()
    np.testing.assert_allclose(codes, expected, rtol=0, atol=3e-6 / epsilon * 0.05 + 1e-6)
    np.testing.assert_allclose(codes.sum(axis=-1), 1, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(96, 6), (2, 256, 20), (8, 300), (1, 1)])
@pytest.mark.parametrize("epsilon", [0.05, 0.01])
def test_many_iterations_stay_in_range_and_balance_the_prototypes(shape: tuple[int, ...], epsilon: float) -> None:
    scores = torch.from_numpy(np.random.RandomState(0).uniform(-1, 1, shape)).float()
    codes = sinkhorn(scores, epsilon, 200, check=False)
    reference = sinkhorn(scores.double(), epsilon, 200)
    torch.testing.assert_close(codes, reference.float(), rtol=0, atol=5e-4)
    torch.testing.assert_close(codes.sum(-1), torch.ones(shape[:-1]), rtol=0, atol=1e-5)
    if epsilon == 0.05:  # sharper codes are not balanced that soon
        share = torch.full((*shape[:-2], shape[-1]), shape[-2] / shape[-1])
        torch.testing.assert_close(codes.sum(-2), share, rtol=0.02, atol=0)


@pytest.mark.parametrize("epsilon", [0.03, 0.05, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_codes_are_those_of_algorithm_1_of_the_paper(epsilon: float, dtype: torch.dtype) -> None:
    scores = torch.from_numpy(cosines(0, 2, 64, 300)).to(dtype)
    expected = textbook_codes(scores.double(), epsilon, 3)
    torch.testing.assert_close(sinkhorn(scores, epsilon, 3).double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(sinkhorn(scores, epsilon, 3, check=False).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("ranks", [2, 4])
def test_unchecked_codes_do_not_depend_on_world_size_and_take_three_collectives(ranks: int) -> None:
    scores = cosines(0, 2, 8, 30)
    parts = np.split(scores, ranks, axis=1)
    together = np.concatenate(run_ranks(parts, unchecked_of), axis=1)
    np.testing.assert_allclose(together, unchecked_of(scores), rtol=0, atol=2e-6)
    assert run_ranks(parts, unchecked_collectives_of) == [["all_reduce"] * 3] * ranks


@pytest.mark.parametrize("epsilon", [0.05, 0.01])
def test_unchecked_scores_that_are_nan_give_codes_that_are_nan(epsilon: float) -> None:
    scores = torch.from_numpy(cosines(0, 2, 8, 30))
    scores[0, 3, 4] = torch.nan
    codes = sinkhorn(scores, epsilon, 3, check=False)
    assert codes[0].isnan().any() and codes[1].isfinite().all()


@pytest.mark.parametrize("check", [True, False])
def test_opposite_samples_at_the_smallest_epsilon_of_products_stay_in_range(check: bool) -> None:
    """The worst case of cosines: one sample at -1 everywhere, the others at +1, and prototypes equally far apart."""
    scores = np.ones((64, 40), np.float32)
    scores[0], scores[1:, 0], scores[0, 1] = -1, -1, 1
    codes = sinkhorn(torch.from_numpy(scores), 1 / 34.9, 3, check=check).numpy()
    np.testing.assert_allclose(codes, textbook(scores, 1 / 34.9, 3), rtol=0, atol=1e-5)


def test_the_scores_do_not_change() -> None:
    scores = torch.from_numpy(cosines(0, 2, 8, 30))
    before = scores.clone()
    sinkhorn(scores, 0.05, 3, check=False)
    assert torch.equal(scores, before)

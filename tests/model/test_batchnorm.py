"""Batch norm over ranks equals batch norm over their joint batch, computed in float32 for every input dtype."""

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

from model.batchnorm import BatchNorm, replace_batch_norm, synchronized_batch_norm
from model.swav import Layers
from support.ranks import count_collectives, run_ranks
from support.rounded_values import samples

Arrays = dict[str, np.ndarray]
Task = tuple[np.ndarray, int, torch.dtype]
DTYPES = [  # of inputs, of weights, of autocast
    (torch.float16, torch.float16, ""),
    (torch.bfloat16, torch.bfloat16, ""),
    (torch.bfloat16, torch.float32, "bfloat16"),
    (torch.float16, torch.float32, "float16"),
    (torch.float32, torch.float32, "bfloat16"),
    (torch.float32, torch.float16, ""),
]


def small_network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Batch norm over images and over vectors, with weights that are not one."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 5, 3, bias=False),
        nn.BatchNorm2d(5, momentum=0.3, eps=1e-3),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(45, 7, bias=False),
        nn.BatchNorm1d(7),
        nn.Linear(7, 4),
    )
    for module in network:
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -1, 1)
    return network.to(dtype)


def images(seed: int, batch: int) -> np.ndarray:
    return np.random.RandomState(seed).normal(0.5, 2, size=(batch, 3, 7, 7))


def trained(network: nn.Module, batch: np.ndarray, dtype: torch.dtype) -> Arrays:
    """One step's output and input gradient (by sample), parameter gradients and buffers."""
    x = torch.from_numpy(batch).to(dtype).requires_grad_()
    out = network(x)
    out.sin().sum().backward()
    assert x.grad is not None
    actual = {"output": out.detach(), "input gradient": x.grad}
    actual |= {f"gradient of {name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
    actual |= {f"buffer {name}": buffer for name, buffer in network.named_buffers()}
    return {name: value.numpy() for name, value in actual.items()}


def trained_on_a_rank(task: Task, equal_batches: bool = False) -> Arrays:
    batch, group_size, dtype = task
    network = small_network(dtype)
    replace_batch_norm(network, group_size, dist.get_world_size(), dist.get_rank(), equal_batches)
    return trained(network, batch, dtype)


def trainings_on_a_rank(tasks: list[Task]) -> list[Arrays]:
    return [trained_on_a_rank(task) for task in tasks]


def together(ranks: list[Arrays]) -> Arrays:
    """Joins the results of ranks: samples concatenated, gradients summed, buffers equal on all ranks."""
    actual = {}
    for name, first in ranks[0].items():
        values = [rank[name] for rank in ranks]
        if name in ("output", "input gradient"):
            actual[name] = np.concatenate(values)
        elif name.startswith("gradient"):
            actual[name] = np.sum(values, axis=0)
        else:
            assert all(np.array_equal(value, first) for value in values), name
            actual[name] = first
    return actual


def deviation(actual: Arrays, expected: Arrays) -> float:
    """The largest difference of any tensor, relative to that tensor's largest value."""
    assert actual.keys() == expected.keys()
    return max(float(np.abs(actual[name] - expected[name]).max() / np.abs(expected[name]).max()) for name in expected)


def unequal_batches(sizes: list[int]) -> list[np.ndarray]:
    """Images with a different mean and scale on each rank, so that the statistics of a single rank are wrong."""
    return [(1 + rank) * images(rank, size) + rank for rank, size in enumerate(sizes)]


# ---- over ranks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[4, 4], [1, 6], [5, 1, 2, 3]], ids=str)
def test_ranks_together_are_one_process_on_the_whole_batch(sizes: list[int]) -> None:
    batches, tolerances = unequal_batches(sizes), {torch.float64: 1e-12, torch.float32: 5e-6}
    expected = trained(small_network(), np.concatenate(batches), torch.float64)
    ranks = run_ranks([[(batch, 0, dtype) for dtype in tolerances] for batch in batches], trainings_on_a_rank)
    for arrays, tolerance in zip(zip(*ranks, strict=True), tolerances.values(), strict=True):
        assert deviation(together(list(arrays)), expected) < tolerance


@pytest.mark.parametrize("sizes", [[4, 4], [1, 1, 1]], ids=str)
def test_ranks_that_promise_equal_batches_send_no_counts_and_get_the_same(sizes: list[int]) -> None:
    batches = [(batch, 0, torch.float64) for batch in unequal_batches(sizes)]
    counted = together(run_ranks(batches, trained_on_a_rank))
    assert deviation(together(run_ranks(batches, trained_with_equal_batches)), counted) < 1e-14


def trained_with_equal_batches(task: tuple[np.ndarray, int, torch.dtype]) -> Arrays:
    with mock.patch.object(dist, "all_gather_into_tensor", wraps=dist.all_gather_into_tensor) as gather:
        arrays = trained_on_a_rank(task, equal_batches=True)
    assert [len(call.args[1]) for call in gather.call_args_list] == [12, 10, 14]  # means and squares of three layers
    return arrays


def test_groups_do_not_mix_and_the_last_has_the_ranks_that_are_left() -> None:
    groups_of = {1: [[0], [1], [2], [3]], 2: [[0, 1], [2, 3]], 3: [[0, 1, 2], [3]], 8: [[0, 1, 2, 3]]}
    batches = unequal_batches([2, 3, 4, 2])
    ranks = run_ranks([[(batch, size, torch.float64) for size in groups_of] for batch in batches], trainings_on_a_rank)
    for number, groups in enumerate(groups_of.values()):
        for group in groups:
            expected = trained(small_network(), np.concatenate([batches[rank] for rank in group]), torch.float64)
            assert deviation(together([ranks[rank][number] for rank in group]), expected) < 1e-12


def collectives_on_a_rank(batch: np.ndarray) -> list[list[str]]:
    network = small_network()
    replace_batch_norm(network, 0, dist.get_world_size(), dist.get_rank())
    calls = count_collectives()
    counts = []
    x = torch.from_numpy(batch)
    out = network(x)
    counts.append(calls.copy())
    calls.clear()
    out.sum().backward()
    counts.append(calls.copy())
    calls.clear()
    network.eval()(x)
    counts.append(calls.copy())
    return counts


def test_a_layer_takes_one_collective_forward_one_backward_and_none_in_eval_mode() -> None:
    expected = [["all_gather_into_tensor"] * 3, ["all_reduce"] * 3, []]
    assert run_ranks(unequal_batches([2, 3]), collectives_on_a_rank) == [expected] * 2


def norm_on_a_rank(task: tuple[np.ndarray, np.ndarray, torch.dtype, torch.dtype, str]) -> Arrays:
    """A single layer with weights and inputs of the given dtypes; `autocast` is a dtype's name or empty."""
    batch, dy, dtype, weight_dtype, autocast = task
    norm = BatchNorm(batch.shape[1], group=dist.group.WORLD)
    nn.init.constant_(norm.weight, 1.5)
    for parameter in norm.parameters():
        parameter.data = parameter.data.to(weight_dtype)
    x = torch.from_numpy(batch).to(dtype)
    if x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    with torch.autocast("cpu", getattr(torch, autocast or "bfloat16"), enabled=bool(autocast)):
        out = norm(x)
    out.backward(torch.from_numpy(dy).to(dtype))  # contiguous even where x is channels-last
    assert x.grad is not None and norm.weight.grad is not None and norm.bias.grad is not None
    assert out.dtype == x.dtype == x.grad.dtype and norm.weight.grad.dtype == weight_dtype
    assert norm.running_mean is not None and norm.running_mean.dtype == torch.float32
    if x.ndim == 4:
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert x.grad.is_contiguous(memory_format=torch.channels_last)
    actual = {"output": out.detach(), "input gradient": x.grad} | {
        "gradient of weight": norm.weight.grad,
        "gradient of bias": norm.bias.grad,
        "buffer mean": norm.running_mean,
        "buffer var": norm.running_var,
    }
    return {name: value.double().numpy() for name, value in actual.items()}


def norms_on_a_rank(tasks: list[Any]) -> list[Arrays]:
    return [norm_on_a_rank(task) for task in tasks]


def reference(batch: np.ndarray, dy: np.ndarray) -> Arrays:
    """The expected results of `norm_on_a_rank`, by torch's batch norm in float64."""
    norm = nn.BatchNorm2d(batch.shape[1]) if batch.ndim == 4 else nn.BatchNorm1d(batch.shape[1])
    nn.init.constant_(norm.double().weight, 1.5)
    x = torch.from_numpy(batch).double().requires_grad_()
    out = norm(x)
    out.backward(torch.from_numpy(dy).double())
    assert x.grad is not None and norm.weight.grad is not None and norm.bias.grad is not None
    actual = {"output": out.detach(), "input gradient": x.grad} | {
        "gradient of weight": norm.weight.grad,
        "gradient of bias": norm.bias.grad,
        "buffer mean": norm.running_mean,
        "buffer var": norm.running_var,
    }
    return {name: value.numpy() for name, value in actual.items() if value is not None}


@pytest.mark.parametrize("world_size", [1, 2])
def test_it_computes_in_float32_for_every_input_dtype(world_size: int) -> None:
    cases = [(shape, *dtypes) for shape in ((6, 4, 5, 5), (6, 4), (6, 4, 5)) for dtypes in DTYPES]
    data = [samples(shape, dtype) for shape, dtype, _, _ in cases]
    parts = [
        list(zip(*(np.array_split(values, [4][: world_size - 1]) for values in pair), strict=True)) for pair in data
    ]
    tasks = [[(*part[rank], *case[1:]) for part, case in zip(parts, cases, strict=True)] for rank in range(world_size)]
    ranks = run_ranks(tasks, norms_on_a_rank)
    for number, (_, dtype, weight_dtype, _) in enumerate(cases):
        actual, expected = together([rank[number] for rank in ranks]), reference(*data[number])
        for name, value in expected.items():
            stored = torch.float32 if "buffer" in name else weight_dtype if "gradient of" in name else dtype
            rounding = torch.finfo(stored).eps / 2
            # Each rank rounds its part of a parameter's gradient; all others are computed in float32 and rounded once.
            shares = world_size * np.abs(value).max() if "gradient of" in name else np.abs(value)
            excess = np.abs(actual[name] - value) - rounding * shares
            assert excess.max() < 2e-6 * np.abs(value).max(), (cases[number], name)


def test_a_large_mean_leaves_the_variance_alone() -> None:
    random = np.random.RandomState(0)
    x = (1000 + random.normal(0, 0.1, size=(32, 5, 8, 8))).astype(np.float32)
    dy = random.normal(size=x.shape).astype(np.float32)
    halves = zip(np.split(x, 2), np.split(dy, 2), strict=True)
    actual = together(run_ranks([(*half, torch.float32, torch.float32, "") for half in halves], norm_on_a_rank))
    expected = reference(x, dy)
    np.testing.assert_allclose(actual["buffer var"], expected["buffer var"], rtol=1e-6)
    np.testing.assert_allclose(actual["output"], expected["output"], rtol=0, atol=2e-3)


class Checkpointed(nn.Sequential):
    """A network that stores only the inputs and outputs of its two halves."""

    how = "reentrant"

    def forward(self, x: Tensor) -> Tensor:
        for half in (nn.Sequential(*list(self)[:4]), nn.Sequential(*list(self)[4:])):
            if self.how == "deepspeed":
                import deepspeed

                x = deepspeed.checkpointing.checkpoint(half, x)
            else:
                x = checkpoint(half, x, use_reentrant=self.how == "reentrant")
        return x


def checkpointed_on_a_rank(batch: np.ndarray) -> list[Arrays]:
    results = []
    for how in ("reentrant", "not reentrant", "deepspeed"):
        network = Checkpointed(*small_network())
        network.how = how
        replace_batch_norm(network, 0, dist.get_world_size(), dist.get_rank())
        results.append(trained(network, batch, torch.float64))
    return results


@pytest.mark.parametrize("world_size", [1, 2])
def test_recomputation_for_a_checkpoint_changes_nothing(world_size: int) -> None:
    batches = unequal_batches([4, 3][:world_size])
    expected = trained(small_network(), np.concatenate(batches), torch.float64)
    for arrays in zip(*run_ranks(batches, checkpointed_on_a_rank), strict=True):
        assert deviation(together(list(arrays)), expected) < 1e-12


COMPILED = [(checkpoints, dtype) for checkpoints in (False, True) for dtype in (torch.float64, torch.float32)]


def compiled_on_a_rank(batch: np.ndarray) -> list[tuple[Arrays, int, dict[str, int]]]:
    """For each case: results of a network compiled around its checkpoints, its graphs and what broke them."""
    results = []
    for checkpoints, dtype in COMPILED:
        network = (Checkpointed if checkpoints else Layers)(*small_network(dtype))
        if isinstance(network, Checkpointed):
            network.how = "not reentrant"
        replace_batch_norm(network, 0, dist.get_world_size(), dist.get_rank())
        counter = CompileCounterWithBackend("aot_eager")  # graphs of forward and backward, without generating code
        network.compile(backend=counter, dynamic=False)
        results.append((trained(network, batch, dtype), counter.frame_count, dict(counters["graph_break"])))
    return results


@pytest.mark.slow(seconds=10)
@pytest.mark.parametrize("world_size", [1, 2])
def test_compiled_it_is_one_graph_with_the_same_gradients(world_size: int) -> None:
    batches = unequal_batches([4, 3][:world_size])
    expected = trained(small_network(), np.concatenate(batches), torch.float64)
    ranks = run_ranks(batches, compiled_on_a_rank)
    for (_, dtype), results in zip(COMPILED, zip(*ranks, strict=True), strict=True):
        assert [result[1:] for result in results] == [(1, {})] * world_size
        tolerance = 1e-12 if dtype == torch.float64 else 5e-6
        assert deviation(together([arrays for arrays, _, _ in results]), expected) < tolerance


# ---- in one process ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("tracks", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_in_one_process_it_gives_the_bits_of_torchs_batch_norm(
    training: bool, affine: bool, tracks: bool, momentum: float | None
) -> None:
    theirs = nn.BatchNorm2d(4, 1e-3, momentum, affine, tracks)
    converted = BatchNorm(4, 1e-3, momentum, affine, tracks)
    x = torch.from_numpy(samples((6, 4, 5, 5), torch.float32)[0])
    for _ in range(3):
        theirs(x), converted(x)
    assert torch.equal(converted.train(training)(x), theirs.train(training)(x))
    for name, value in theirs.state_dict().items():
        assert torch.equal(converted.state_dict()[name], value), name


def test_statistics_that_are_no_longer_tracked_do_not_change() -> None:
    norm = BatchNorm(4)
    norm.track_running_stats = False
    norm(torch.from_numpy(samples((6, 4), torch.float32)[0]))
    assert norm.running_mean is not None and not norm.running_mean.any()


def test_state_dicts_move_to_torchs_batch_norm_and_back() -> None:
    theirs, converted = small_network(), small_network()
    replace_batch_norm(converted, 1, 1, 0)
    trained(theirs, images(0, 4), torch.float64)
    assert list(converted.state_dict()) == list(theirs.state_dict())
    converted.load_state_dict(theirs.state_dict())
    back = small_network()
    back.load_state_dict(converted.state_dict())
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in theirs.state_dict().items())


def test_replacing_keeps_modules_tensors_hooks_and_shared_modules() -> None:
    network = small_network()
    network.append(network[8])
    before, calls = dict(network.named_modules()), []
    tensors = [*network.parameters(), *network.buffers()]
    network[1].register_forward_hook(lambda *_: calls.append("called"))
    replace_batch_norm(network, 0, 1, 0)
    network[1](torch.zeros(2, 6, 3, 3, dtype=torch.float64))
    assert all(module is before[name] for name, module in network.named_modules())
    assert all(new is old for new, old in zip([*network.parameters(), *network.buffers()], tensors, strict=True))
    assert [type(network[index]) for index in (1, 4, 8)] == [BatchNorm] * 3 and network[10] is network[8]
    assert calls == ["called"]


def test_a_bare_batch_norm_is_replaced_too() -> None:
    norm = nn.BatchNorm3d(4)
    replace_batch_norm(norm, 0, 1, 0)
    assert isinstance(norm, BatchNorm)


# densenet121 and efficientnet_b0 have modules of norm and activation, regnety_002 has these and plain norms.
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "densenet121", "regnety_002", "levit_128s"])
def test_timm_models_compute_the_same(name: str) -> None:
    import timm  # takes seconds, on each rank too

    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0).eval()
    size = 224 if "levit" in name else 64
    x = torch.from_numpy(np.random.RandomState(0).normal(size=(2, 3, size, size)).astype(np.float32))
    with torch.no_grad():
        expected = network(x)
        replace_batch_norm(network, 0, 1, 0)
        assert any(isinstance(module, BatchNorm) for module in network.modules())
        assert not any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in network.modules())
        assert torch.equal(network(x), expected)


def test_a_batch_norm_with_extra_computation_is_refused() -> None:
    from timm.layers import SplitBatchNorm2d

    network = nn.Sequential(SplitBatchNorm2d(4, num_splits=2))
    with pytest.raises(ValueError, match="batch norm 0 is a SplitBatchNorm2d"):
        replace_batch_norm(network, 0, 1, 0)


def test_a_negative_group_size_is_refused() -> None:
    with pytest.raises(ValueError, match="groups of -1 ranks; give 0"):
        replace_batch_norm(small_network(), -1, 1, 0)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a sample on each rank, got shape \(0, 4\)"):
        synchronized_batch_norm(torch.zeros(0, 4), None, None, None, None, 0.1, 1e-5, None)  # type: ignore[arg-type]

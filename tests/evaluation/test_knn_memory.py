"""k-NN's memory on a GPU, counted on fake tensors of ImageNet's size; and that less memory changes no figure."""

import weakref

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from evaluation.features import bank_dtype, extract, unit_rows
from model.nearest import nearest_rows, predict
from pipeline.batch import Batch

IMAGES, DIM, BATCH = 1_281_167, 2048, 4096
GB = 1e9


class Peak(TorchDispatchMode):
    """The most bytes of a GPU's tensors that were alive at once; `kept` are alive from the start."""

    def __init__(self, *kept):
        super().__init__()
        self.alive, self.bytes = {}, 0
        for tensor in kept:
            self.note(tensor)

    def note(self, tensor):
        number = id(tensor)
        self.alive[number] = weakref.ref(tensor, lambda _: self.alive.pop(number, None))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "cuda":
                self.note(leaf)
        tensors = [tensor for reference in list(self.alive.values()) if (tensor := reference()) is not None]
        storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
        self.bytes = max(self.bytes, sum(storages.values()))
        return result


@pytest.fixture
def gpu():
    with FakeTensorMode():
        yield torch.device("cuda", 0)


def test_imagenets_features_are_in_memory_once_and_in_half_precision(gpu):
    def batches():
        for start in range(0, IMAGES, BATCH):
            yield Batch([torch.empty(min(BATCH, IMAGES - start), 3, 1, 1, device=gpu)], np.empty(0))

    with Peak() as peak:
        features = extract(
            lambda crops: torch.empty(len(crops), DIM, device=gpu), batches(), gpu, IMAGES, bank_dtype(gpu)
        )
    assert (features.shape, features.dtype) == ((IMAGES, DIM), torch.float16)
    assert IMAGES * DIM * 2 < peak.bytes < IMAGES * DIM * 2 + 0.3 * GB  # 5.2 GB and a few batches; it was 31 GB


def test_a_search_takes_less_than_a_gigabyte_beside_the_bank(gpu):
    bank = torch.empty(IMAGES, DIM, dtype=torch.float16, device=gpu)
    queries = torch.empty(1024, DIM, device=gpu)
    with Peak(bank, queries) as peak:
        similarity, rows = nearest_rows(bank, queries, 200)
    assert similarity.shape == rows.shape == (1024, 200)
    assert peak.bytes - IMAGES * DIM * 2 < 1.2 * GB  # all similarities at once take 5.2 GB


def test_cached_features_are_put_on_the_gpu_in_half_precision(gpu):
    with Peak() as peak:
        bank = unit_rows(torch.empty(IMAGES, DIM), gpu, bank_dtype(gpu))
    assert (bank.device, bank.dtype) == (gpu, torch.float16)
    assert peak.bytes < IMAGES * DIM * 2 + 2.5 * GB  # it was 10.5 GB


def test_the_peak_is_seen(gpu):
    with Peak() as peak:
        one = torch.empty(1000, device=gpu)
        two = one + one
        del one
        assert len(two.view(10, 100)) == 10
        (two + two).sum()
    assert peak.bytes == 8000 + 4


def unit(count, seed):
    return torch.nn.functional.normalize(torch.randn(count, 24, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("block", [7, 64, 299, 300, 1000])
def test_a_search_by_blocks_finds_the_same_rows_and_similarities(block):
    bank, queries = unit(300, 1), unit(50, 2)
    similarity, rows = nearest_rows(bank, queries, 20, block)
    expected, expected_rows = (queries @ bank.T).topk(20)
    assert torch.equal(rows, expected_rows)
    torch.testing.assert_close(similarity, expected, rtol=0, atol=1e-6)


def test_features_are_exactly_those_that_one_large_tensor_gave():
    rows = torch.randn(1000, 37, generator=torch.Generator().manual_seed(3)) * 5
    batches = [Batch([part], np.empty(0)) for part in rows.split(64)]
    expected = torch.nn.functional.normalize(rows)
    assert torch.equal(extract(lambda part: part, batches, torch.device("cpu"), 1000), expected)
    assert torch.equal(unit_rows(rows, torch.device("cpu"), chunk=64), expected)


def test_half_precision_keeps_the_classes():
    bank, queries = unit(2000, 4), unit(200, 5)
    labels = torch.arange(2000) % 10
    same = predict(bank.half(), labels, queries) == predict(bank, labels, queries)
    assert same.float().mean() > 0.98

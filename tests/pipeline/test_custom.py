"""crops.custom: the user's function gets one group's crops before normalization, and the same chance after a resume."""

import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from config.recipe import ROOT
from pipeline.crops import UNCHANGED, Changes, Crops, View
from pipeline.custom import key_of
from pipeline.dataset.open import DatasetError, open_dataset
from pipeline.loader import BACKENDS, Loader
from support.photos import photographs, write_folder

CODE = """
import torch

SEEN = []

def noise(crops, generator):
    SEEN.append(crops.clone())
    return crops + torch.rand(crops.shape, generator=generator)

def in_place(crops, generator):
    return crops.mul_(0).add_(0.25)

def fails_later(crops, generator):
    if crops.shape[0] != 2:
        raise RuntimeError("no more stain")
    return crops

def too_few(crops, generator):
    return crops[:1]

def not_a_number(crops, generator):
    return crops / 0

def a_list(crops, generator):
    return []

def without_generator(crops):
    return crops

number = 3
"""
OWN = replace(Changes(**UNCHANGED), custom="own_change:noise")
PLAIN = Crops(views=(View(16, (0.3, 1.0)),) * 2 + (View(8, (0.1, 0.3)),), **UNCHANGED)
NOISY = replace(PLAIN, views=(View(16, (0.3, 1.0)), View(16, (0.3, 1.0), OWN), View(8, (0.1, 0.3))))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    root = write_folder(tmp_path_factory.mktemp("images"), photographs() * 2)
    return open_dataset(root, tmp_path_factory.mktemp("tables"), workers=1, progress=False)


@pytest.fixture(autouse=True)
def own_change(tmp_path, monkeypatch):
    (tmp_path / "own_change.py").write_text(CODE)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield
    sys.modules.pop("own_change", None)


def batches(table, crops, epochs=1, backend="torchvision", **options):
    loader = Loader(table, crops, backend=backend, global_batch=4, **{"seed": 3} | options)
    found = [[[group.clone() for group in batch.crops] for batch in loader] for _ in range(epochs)]
    loader.close()
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_function_changes_its_group_alone_before_normalization(table, backend):
    plain, noisy = (batches(table, crops, backend=backend)[0] for crops in (PLAIN, NOISY))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (PLAIN.mean, PLAIN.std))
    seen = sys.modules["own_change"].SEEN[1:]  # the first call is the trial; the next epoch has begun
    for step, (before, after, given) in enumerate(zip(plain, noisy, seen, strict=False)):
        torch.testing.assert_close(after[0][:4], before[0][:4], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(after[1], before[1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(given, before[0][4:] * std + mean, atol=1e-5, rtol=1e-5)
        assert given.shape == (4, 3, 16, 16) and given.min() >= -1e-6 and given.max() <= 1 + 1e-6
        generator = torch.Generator().manual_seed(key_of(3, 0, 4 * step, 1))
        expected = (given + torch.rand(given.shape, generator=generator) - mean) / std
        torch.testing.assert_close(after[0][4:], expected, atol=1e-5, rtol=1e-5)
        assert after[0].is_contiguous(memory_format=torch.channels_last)


def test_a_loader_that_goes_on_makes_the_same_crops(table):
    (first, second) = batches(table, NOISY, epochs=2)
    loader = Loader(table, NOISY, backend="torchvision", global_batch=4, seed=3)
    loader.position.epoch, loader.position.samples = 1, 4
    for batch, expected in zip(loader, second[1:], strict=True):
        assert all(torch.equal(one, other) for one, other in zip(batch.crops, expected, strict=True))
    loader.close()
    assert not torch.equal(first[0][0], second[0][0])


def test_epochs_steps_ranks_seeds_and_groups_have_chances_of_their_own():
    keys = [key_of(*place) for place in np.ndindex(3, 3, 5, 2)]
    assert len(set(keys)) == len(keys) and max(keys) < 2**64
    assert key_of(3, 1, 8, 1) == 994819293027369254  # a change of it changes the crops of existing runs


def test_two_processes_have_other_chances_for_their_parts(table):
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (PLAIN.mean, PLAIN.std))
    noise = []
    for rank in range(2):
        first = batches(table, NOISY, rank=rank, world_size=2)[0][0]
        given = sys.modules["own_change"].SEEN[1]
        assert given.shape == (2, 3, 16, 16)
        noise.append(first[0][2:] * std + mean - given)
        sys.modules["own_change"].SEEN.clear()
    assert (noise[0] - noise[1]).abs().mean() > 0.2


def test_a_function_may_change_its_crops_in_place(table):
    own = replace(OWN, custom="own_change:in_place")
    made = batches(table, replace(PLAIN, views=(View(8, (0.3, 1.0), own),)))[0]
    expected = ((0.25 - torch.tensor(PLAIN.mean)) / torch.tensor(PLAIN.std)).view(-1, 1, 1)
    torch.testing.assert_close(made[0][0], expected.expand(4, 3, 8, 8))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:noise", "there is no module no_such_module in the current folder"),
        ("own_change:noize", "has no function noize; nearest: noise"),
        ("own_change:number", "has no function number"),
        (
            "own_change:too_few",
            "the function returned torch.float32 [1, 3, 16, 16], expected a tensor of float32 [2, 3",
        ),
        ("own_change:a_list", "the function returned list, expected"),
        ("own_change:not_a_number", "of crops of noise it returned NaN or infinity"),
        ("own_change:without_generator", "TypeError: without_generator() takes 1 positional argument but 2 were given"),
    ],
)
def test_a_mistake_in_the_function_is_one_line_before_the_first_batch(table, name, message):
    with pytest.raises(ValueError, match=r"^crops.custom=") as caught:
        Loader(table, replace(PLAIN, custom=name), backend="torchvision", global_batch=4, seed=3)
    assert str(caught.value).startswith(f"crops.custom={name}: ")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_error_of_the_function_in_a_batch_is_one_line_with_its_name(table):
    line = r"^crops.custom=own_change:fails_later: RuntimeError: no more stain \(.*:\d+\)$"
    with pytest.raises(DatasetError, match=line):
        batches(table, replace(PLAIN, custom="own_change:fails_later"))


def test_the_example_of_the_page_changes_the_stains(tmp_path):
    (code,) = re.findall(r"```python\n(# stain.py\n.*?)```", (ROOT / "docs" / "views.md").read_text(), re.DOTALL)
    names = {}
    exec(code, names)
    crops = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    one, again = (names["jitter"](crops, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, again) and one.shape == crops.shape and one.min() >= 0 and one.max() <= 1
    assert 0.01 < (one - crops).abs().mean() < 0.2
    names["torch"] = type(
        "",
        (),
        {"rand": lambda *shape, **_: torch.full(shape, 0.5)}
        | {name: staticmethod(getattr(torch, name)) for name in ("log", "einsum", "exp")}
        | {"linalg": torch.linalg},
    )
    torch.testing.assert_close(names["jitter"](crops, None), crops, atol=1e-5, rtol=1e-5)  # all amounts as they are

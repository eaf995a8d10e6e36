"""Unfinished training of an evaluation is taken up again, or begins again where its file is damaged."""

import pytest
import torch

from evaluation.progress import load_progress, save_progress


def trained(seed):
    torch.manual_seed(seed)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    return network, optimizer


def test_weights_momenta_and_curves_come_back(tmp_path):
    network, optimizer = trained(1)
    save_progress(tmp_path / "x", network, optimizer, [[0.5]])
    other, its_optimizer = trained(2)
    assert load_progress(tmp_path / "x", other, its_optimizer) == [[0.5]]
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True)
    )
    momenta = [o.state[n[0].weight]["momentum_buffer"] for o, n in ((optimizer, network), (its_optimizer, other))]
    assert torch.equal(*momenta)


@pytest.mark.parametrize("damage", [lambda d: d[:-3], lambda d: b"", lambda d: d[:-2] + bytes([d[-2] ^ 16]) + d[-1:]])
def test_a_damaged_file_is_told_and_changes_nothing(tmp_path, capsys, damage):
    network, optimizer = trained(1)
    save_progress(tmp_path / "x", network, optimizer, [[0.5]])
    (tmp_path / "x").write_bytes(damage((tmp_path / "x").read_bytes()))
    other, its_optimizer = trained(2)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    assert load_progress(tmp_path / "x", other, its_optimizer) == []
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    assert capsys.readouterr().err.endswith("x is damaged; the training begins again\n")

"""The promises of the model's parts: loss, queue, optimizer, network, weight files."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model.backbone import build_backbone
from model.loss import swapped_prediction
from model.optimizer.groups import parameter_groups
from model.optimizer.lars import LARS, _squares
from model.queue import EmbeddingQueue
from model.swav import SwAV
from model.weights import load_weights, published_names

SMALL = {"block": "basic", "layers": (1, 1), "base_width": 8, "stem": "small"}


def small_network(seed: int = 0) -> SwAV:
    torch.manual_seed(seed)
    return SwAV(build_backbone("resnet", **SMALL), hidden_dim=12, embedding_dim=6, num_prototypes=10)


def rows_of_unit_length(weight: Tensor) -> bool:
    return torch.allclose(weight.norm(dim=1), torch.ones(len(weight)), atol=1e-6)


# ---- loss ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("assigning", [(0, 1), (1,), (2, 0, 3)])
def test_swapped_prediction_is_the_mean_over_pairs_of_different_crops(assigning: tuple[int, ...]) -> None:
    crops, batch, prototypes = 4, 3, 7
    torch.manual_seed(0)
    scores = torch.rand(crops, batch, prototypes, dtype=torch.float64)
    codes = torch.softmax(torch.rand(len(assigning), batch, prototypes, dtype=torch.float64), dim=-1)
    pairs = [
        -(codes[i, sample] * torch.log_softmax(scores[other, sample] / 0.1, dim=0)).sum()
        for i, crop in enumerate(assigning)
        for other in range(crops)
        if other != crop
        for sample in range(batch)
    ]
    loss = swapped_prediction(codes, scores, assigning, temperature=0.1)
    torch.testing.assert_close(loss, torch.stack(pairs).mean())


def test_swapped_prediction_of_equal_scores_is_the_logarithm_of_the_number_of_prototypes() -> None:
    codes = torch.softmax(torch.rand(2, 3, 3000), dim=-1)
    loss = swapped_prediction(codes, torch.zeros(8, 3, 3000), (0, 1), 0.1)
    assert loss.item() == pytest.approx(8.00637, abs=1e-5)


def test_swapped_prediction_is_float32_under_autocast() -> None:
    scores, codes = torch.rand(3, 4, 5), torch.softmax(torch.rand(2, 4, 5), dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = swapped_prediction(codes, scores, (0, 1), 0.1)
    assert torch.equal(inside, swapped_prediction(codes, scores, (0, 1), 0.1))


def test_swapped_prediction_needs_a_code_for_each_assigning_crop() -> None:
    with pytest.raises(ValueError, match="codes for each assigning crop"):
        swapped_prediction(torch.rand(1, 4, 5), torch.rand(3, 4, 5), (0, 1), 0.1)


# ---- queue -----------------------------------------------------------------------------------------------


def test_queue_gives_nothing_before_it_is_full_and_everything_after() -> None:
    queue = EmbeddingQueue(2, 6, 3, global_batch=4)
    batches = torch.rand(3, 2, 4, 3)
    queue.push(batches[0])
    assert not queue.full and queue.queued() is None
    queue.push(batches[1])
    queue.push(batches[2])
    assert queue.full
    assert torch.equal(queue.queued(), torch.cat([batches[2], batches[1][:, :2]], dim=1))


def test_queue_keeps_no_gradient() -> None:
    queue = EmbeddingQueue(1, 4, 3, global_batch=4)
    queue.push(torch.rand(1, 4, 3, requires_grad=True) * 2)
    assert not queue.queued().requires_grad


def test_queue_is_shared_out_over_the_ranks() -> None:
    assert EmbeddingQueue(2, 3840, 8, global_batch=256, world_size=4).embeddings.shape == (2, 960, 8)


@pytest.mark.parametrize(
    ("length", "batch", "ranks", "message"),
    [
        (128, 256, 1, "queue length 128 is shorter than the global batch 256"),
        (100, 60, 3, "queue length 100 is not divisible by the number of ranks 3"),
    ],
)
def test_queue_of_impossible_length_is_an_error(length: int, batch: int, ranks: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmbeddingQueue(2, length, 8, global_batch=batch, world_size=ranks)


@pytest.mark.parametrize("pushes", [0, 1, 2])
def test_queue_goes_on_where_a_saved_one_stopped(pushes: int) -> None:
    saved, restored = (EmbeddingQueue(2, 8, 3, global_batch=4) for _ in range(2))
    for _ in range(pushes):
        saved.push(torch.rand(2, 4, 3))
    restored.load_state_tensors([saved.state_tensors()])
    last = torch.rand(2, 4, 3)
    for queue in (saved, restored):
        queue.push(last)
    assert restored.full == saved.full == (pushes > 0)
    assert torch.equal(restored.embeddings, saved.embeddings)


def test_queue_of_another_shape_is_not_loaded() -> None:
    with pytest.raises(ValueError, match="saved queue has shape"):
        EmbeddingQueue(2, 8, 3, global_batch=4).load_state_tensors([{"own/queue": torch.zeros(2, 4, 3)}])


# ---- LARS ------------------------------------------------------------------------------------------------


def stepped(parameter: Tensor, gradient: Tensor, **group: object) -> Tensor:
    p = nn.Parameter(parameter.clone())
    optimizer = LARS([{"params": [p], **group}], lr=0.5, momentum=0.9, weight_decay=0.1)
    p.grad = gradient.clone()
    optimizer.step()
    return p.detach()


@pytest.mark.parametrize("shape", [(3, 4), (5,), (2, 3, 1, 1)])
def test_lars_scales_every_parameter_by_its_trust_ratio(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    p, g = torch.randn(shape), torch.randn(shape)
    ratio = 0.001 * p.norm() / (g.norm() + 0.1 * p.norm() + 1e-8)
    torch.testing.assert_close(stepped(p, g), p - 0.5 * ratio * (g + 0.1 * p))


@pytest.mark.parametrize("size", [7, 50_000, 3_000_001])
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-12, 1.0, 1e19, 1e30])
def test_lars_adds_up_squares_of_every_size_of_float32(size, scale):
    values = torch.randn(size, generator=torch.Generator().manual_seed(size)) * scale
    squares = _squares([values, torch.zeros(size), values.double()])
    expected = values.double().square().sum()
    torch.testing.assert_close(squares, torch.stack([expected, expected * 0, expected]), rtol=1e-7, atol=0)


def test_lars_takes_the_plain_gradient_without_decay_for_a_parameter_of_zeros() -> None:
    gradient = torch.tensor([3.0, 4.0])
    torch.testing.assert_close(stepped(torch.zeros(2), gradient), -0.5 * gradient)


def test_lars_leaves_a_parameter_without_gradient_norm_undecayed() -> None:
    parameter = torch.tensor([3.0, 4.0])
    assert torch.equal(stepped(parameter, torch.zeros(2)), parameter)


def test_lars_without_trust_ratio_is_sgd() -> None:
    torch.manual_seed(0)
    parameter, reference = (nn.Parameter(torch.ones(5)) for _ in range(2))
    lars = LARS([{"params": [parameter], "trust_ratio": False}], lr=0.5, weight_decay=0.1)
    sgd = torch.optim.SGD([reference], lr=0.5, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        parameter.grad = reference.grad = torch.randn(5)
        lars.step()
        sgd.step()
    torch.testing.assert_close(parameter, reference)


def test_lars_keeps_its_momentum_in_a_state_dict() -> None:
    torch.manual_seed(0)
    gradients = torch.randn(2, 5)
    parameter, other = (nn.Parameter(torch.ones(5)) for _ in range(2))
    first = LARS([parameter], lr=0.5)
    parameter.grad = gradients[0]
    first.step()
    second = LARS([other], lr=0.5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    other.data.copy_(parameter.data)
    parameter.grad = other.grad = gradients[1]
    first.step()
    second.step()
    assert torch.equal(parameter, other)


def test_frozen_prototypes_do_not_move_and_gather_no_momentum() -> None:
    network = small_network()
    optimizer = LARS(parameter_groups(network), lr=0.5)
    prototypes = network.prototypes.weight
    before, others = prototypes.detach().clone(), network.projection_head[0].weight.detach().clone()
    optimizer.param_groups[-1]["frozen"] = True
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert torch.equal(prototypes, before) and prototypes not in optimizer.state
    assert not torch.equal(network.projection_head[0].weight, others)


def test_prototypes_have_unit_rows_from_the_start_and_after_every_step() -> None:
    network = small_network()
    optimizer = LARS(parameter_groups(network), lr=500.0)
    for _ in range(3):
        assert rows_of_unit_length(network.prototypes.weight)
        network.prototypes.weight.grad = torch.randn_like(network.prototypes.weight)
        optimizer.step()
    assert rows_of_unit_length(network.prototypes.weight)


def test_one_dimensional_parameters_can_be_left_out_of_the_trust_ratio() -> None:
    main, one_dimensional, prototypes = parameter_groups(small_network(), exclude_1d=True)
    assert all(p.ndim > 1 for p in main["params"])
    assert all(p.ndim == 1 for p in one_dimensional["params"]) and not one_dimensional["trust_ratio"]
    assert prototypes["unit_rows"] and len(prototypes["params"]) == 1


def test_parameters_that_do_not_train_are_in_no_group() -> None:
    network = small_network()
    network.backbone.requires_grad_(False)
    count = sum(len(group["params"]) for group in parameter_groups(network))
    assert count == len(list(network.projection_head.parameters())) + 1


# ---- network ---------------------------------------------------------------------------------------------


def test_scores_are_cosines_of_embeddings_and_prototypes_in_view_order() -> None:
    network = small_network().eval()
    crops = [torch.rand(2 * 3, 3, 16, 16), torch.rand(4 * 3, 3, 8, 8)]
    embeddings, scores, _, _ = network(crops, batch_size=3)
    assert embeddings.shape == (6, 3, 6) and scores.shape == (6, 3, 10)
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(6, 3))
    torch.testing.assert_close(scores, embeddings @ network.prototypes.weight.T)
    torch.testing.assert_close(embeddings[2], network([crops[1][:3]], batch_size=3)[0][0])


def test_head_sees_the_crops_of_all_resolutions_together() -> None:
    network = small_network()
    batches = []
    network.projection_head[1].register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    network([torch.rand(6, 3, 16, 16), torch.rand(12, 3, 8, 8)], batch_size=3)
    assert batches == [18]


def test_queue_is_scored_against_the_prototypes_without_gradient() -> None:
    network, queued = small_network(), torch.rand(2, 5, 6)
    _, scores, queue_scores, _ = network([torch.rand(6, 3, 8, 8)], 3, queued)
    torch.testing.assert_close(queue_scores, queued @ network.prototypes.weight.T)
    assert scores.requires_grad and not queue_scores.requires_grad


def test_embeddings_and_scores_are_float32_under_autocast() -> None:
    network = small_network().eval()
    with torch.autocast("cpu", torch.bfloat16):
        embeddings, scores, _, _ = network([torch.rand(4, 3, 8, 8)], 2)
    assert embeddings.dtype == scores.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(2, 2))
    torch.testing.assert_close(scores, embeddings @ network.prototypes.weight.T)


def test_channels_last_crops_stay_channels_last() -> None:
    network = small_network()
    seen = []
    network.backbone.conv1.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    network([torch.rand(4, 3, 8, 8).to(memory_format=torch.channels_last)], 2)
    assert seen == [True]


def test_head_without_hidden_layer_is_linear() -> None:
    network = SwAV(build_backbone("resnet", **SMALL), hidden_dim=0, embedding_dim=6, num_prototypes=10)
    assert isinstance(network.projection_head, nn.Linear)
    assert "projection_head.weight" in network.state_dict()


# ---- weights ---------------------------------------------------------------------------------------------


def equal(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("suffix", [".pth.tar", ".safetensors"])
@pytest.mark.parametrize("layout", ["ours", "published"])
def test_weights_come_back_from_a_file(tmp_path: Path, suffix: str, layout: str) -> None:
    saved, loaded, path = small_network(0), small_network(1), tmp_path / f"weights{suffix}"
    state = saved.state_dict()
    if layout == "published":
        state = {f"module.{key}": value for key, value in published_names(state).items()}
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if layout == "published" else state, path)
    assert not equal(saved, loaded)
    load_weights(loaded, path)
    assert equal(saved, loaded)


def test_published_names_have_no_prefix() -> None:
    names = published_names(small_network().state_dict())
    assert {"conv1.weight", "layer2.0.downsample.0.weight", "projection_head.3.bias"} <= names.keys()
    assert not any(name.startswith("backbone.") for name in names)


def test_loading_the_backbone_alone_does_not_change_the_heads(tmp_path: Path) -> None:
    saved, loaded, untouched = small_network(0), small_network(1), small_network(1)
    save_file(published_names(saved.state_dict()), tmp_path / "weights.safetensors")
    load_weights(loaded, tmp_path / "weights.safetensors", backbone_only=True)
    assert equal(loaded.backbone, saved.backbone)
    assert equal(loaded.projection_head, untouched.projection_head)
    assert equal(loaded.prototypes, untouched.prototypes)


def test_bare_backbone_takes_its_part_of_a_file(tmp_path: Path) -> None:
    saved, backbone = small_network(0), small_network(1).backbone
    save_file(saved.state_dict(), tmp_path / "weights.safetensors")
    load_weights(backbone, tmp_path / "weights.safetensors")
    assert equal(backbone, saved.backbone)


def test_weights_that_do_not_fit_are_a_short_line_that_counts_the_keys_and_changes_nothing(tmp_path: Path) -> None:
    state = small_network(0).state_dict()
    del state["backbone.bn1.bias"]
    state["backbone.conv1.weight"] = torch.zeros(1, 3, 3, 3)
    state.update({f"backbone.extra{i:02}": torch.zeros(1) for i in range(1200)})
    save_file(state, tmp_path / "weights.safetensors")
    network = small_network(1)
    with pytest.raises(ValueError, match="does not fit") as error:
        load_weights(network, tmp_path / "weights.safetensors")
    message = str(error.value)
    assert "1 missing (bn1.bias); 1200 unexpected (extra0000, ...)" in message.replace("extra00,", "extra0000,")
    assert "1 of another shape (conv1.weight [1, 3, 3, 3] for [8, 3, 3, 3])" in message
    assert len(message) < 300 + len(str(tmp_path))
    assert equal(network, small_network(1))


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        load_weights(small_network(), tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_file_that_is_no_weights_file_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(ValueError, match="unreadable") as error:
        load_weights(small_network(), tmp_path / name)
    assert "\n" not in str(error.value)


def test_file_without_tensors_is_an_error(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="no tensors by name"):
        load_weights(small_network(), tmp_path / "weights.pth")

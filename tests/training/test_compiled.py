"""engine.compile on two ranks: one static graph for each resolution, with batch norm's collectives inside it."""

import copy
import json
import re
from functools import partial
from unittest import mock

import pytest
import torch

from config.errors import ConfigError
from config.recipe import load_config
from perf.ranks import run_ranks
from perf.step.steps import Steps
from training.auto import fit
from training.build import build_network
from training.compiled import compile_and_check
from training.distributed import Cluster

SETTINGS = (
    *("data.path=none", "run.batch_size=8", "engine.sync_batch_norm=0", "swav.queue.length=0"),
    *("model.backbone=resnet", "model.options={block: basic, layers: [1], base_width: 8, stem: small, stem_stride: 2}"),
    *("model.hidden_dim=8", "model.embedding_dim=4", "model.prototypes=8", "optimizer.warmup_epochs=0"),
    *("crops.global.size=16", "crops.local.size=8", "crops.local.count=2", "evaluation.probe=true"),
    *("swav.teacher.momentum=0.9", "engine.activation_checkpointing=true"),
)
FIRST, LATER = 1, 3  # steps
GRAPHS = 5  # the backbone at both resolutions and the head; the teacher's two


def count_graphs(rank, folder):
    """As a rank: graphs, breaks of graphs and losses, compiled and eager."""
    import torch
    from torch._dynamo.testing import CompileCounterWithBackend
    from torch._dynamo.utils import counters

    from evaluation.features import evaluation_mode
    from training.compiled import compile_network, in_whole_batches
    from training.distributed import connected

    cluster = Cluster(rank, 2, rank, 2)
    counter = CompileCounterWithBackend("aot_eager")  # graphs of forward and backward, without generating code
    found = {}
    with connected(cluster):
        for compiled in (True, False):
            config = load_config(["config/demo.yaml", *SETTINGS, f"engine.compile={compiled}".lower()])
            fit(config, 64, cluster)
            counting = partial(compile_network, backend=counter)
            with (
                mock.patch("training.compiled.compile_network", counting),
                mock.patch("training.build.compile_network", counting),
            ):
                steps = Steps(config, cluster, 64)
            torch.manual_seed(rank)
            batches = [steps.noise(channels_last=True) for _ in range(FIRST + LATER)]
            losses, graphs = [], []
            for batch in batches:
                losses.append(float(steps.step(iter([batch]))))
                graphs.append(counter.frame_count)
            found["compiled" if compiled else "eager"] = losses
            with evaluation_mode(steps.network), torch.no_grad():
                features = in_whole_batches(steps.engine, 4)
                for rows in (4, 4, 3, 1):
                    assert len(features(torch.randn(rows, 3, 16, 16))) == rows
            graphs.append(counter.frame_count)
            losses.append(float(steps.step(iter([steps.noise(channels_last=True)]))))
            graphs.append(counter.frame_count)
            if compiled:
                found |= {"graphs": graphs, "breaks": dict(counters["graph_break"])}
            norms = [m for m in steps.network.modules() if getattr(m, "group", None) is not None]
            found["norms"] = len(norms)
    (folder / f"{rank}.json").write_text(json.dumps(found))


@pytest.mark.slow(seconds=20)
def test_each_resolution_is_one_graph_and_none_follows_after_the_first_step(tmp_path):
    run_ranks(count_graphs, 2, tmp_path)
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["norms"] > 0
        assert found["breaks"] == {}
        assert found["graphs"] == [*[GRAPHS] * (FIRST + LATER), GRAPHS + 1, GRAPHS + 1]  # one more for evaluation
        assert found["compiled"] == pytest.approx(found["eager"], rel=1e-5)


@pytest.mark.slow(seconds=40)
@pytest.mark.parametrize("ranks", [1, 2])
def test_batch_norm_relu_and_add_are_one_kernel(ranks):
    """A compiled residual block reads and writes each activation once: two kernels normalize, with the ReLU, the second
    with the shortcut's sum too. The others take the statistics: one for each normalization, over two ranks, of whom the
    other is not there (torch's "fake" process group), and one for the first, alone."""
    import torch
    import torch.distributed as dist
    from torch._inductor.utils import run_and_get_code
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from model.backbone import build_backbone
    from model.batchnorm import replace_batch_norm

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        network = build_backbone("resnet", layers=[1], base_width=16, block="basic")
        replace_batch_norm(network, 0, ranks, 0, equal_batches=True)
        block = network.layer1[0]
        x = torch.randn(4, 16, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
        _, (code,) = run_and_get_code(lambda: torch.compile(block, dynamic=False)(x))
    finally:
        dist.destroy_process_group()
    normalizing = {"rsqrt", "sub", "mul"} if ranks > 1 else {"batch"}
    names = [set(name.split("_")) for name in sorted(set(re.findall(r"cpp_fused\w*_\d+", code)), key=last_number)]
    with_relu = [name for name in names if "relu" in name]
    assert len(with_relu) == 2 and all(name >= normalizing for name in with_relu)
    assert with_relu[-1] >= {"add", "threshold"}  # its ReLU is the block's last, whose mask backward needs
    assert len(names) == (4 if ranks > 1 else 3)


def last_number(name):
    return int(name.rsplit("_", 1)[1])


def test_cuda_graphs_are_asked_of_inductor_and_begin_anew_with_each_forward_pass():
    from model.backbone import build_backbone
    from model.swav import SwAV
    from training.compiled import compile_network

    network = SwAV(build_backbone("resnet", layers=[1], base_width=8), 8, 4, 8)
    compile_network(network, cuda_graphs=True)  # raises RuntimeError for an option that inductor does not know
    with mock.patch("torch.compiler.cudagraph_mark_step_begin") as begins:
        for hook in network._forward_pre_hooks.values():
            hook(network, ())
    assert begins.call_count == 1


def test_cuda_graphs_need_a_gpu():
    config = load_config(["config/demo.yaml", "data.path=none", "engine.compile=true", "engine.cuda_graphs=true"])
    with pytest.raises(ConfigError, match=r"engine\.cuda_graphs=true needs a GPU"):
        fit(config, 6000, Cluster(0, 1, 0, 1))


def tiny_network():
    config = load_config(["config/demo.yaml", *SETTINGS])
    fit(config, 64, Cluster())
    return build_network(config.model, [16, 8])


def wrongly(network, **_):
    """Compiled by a compiler that drops the gradient."""
    network.backbone.register_forward_hook(lambda _module, _images, features: features.detach() + 0 * features)


@pytest.mark.parametrize("compiler", [wrongly, lambda network, **_: None])
def test_a_compiled_backbone_with_another_gradient_is_refused_and_a_right_one_is_left_as_it_was(compiler, monkeypatch):
    network = tiny_network()
    before = copy.deepcopy(network.state_dict())
    monkeypatch.setattr("training.compiled.compile_network", compiler)
    check = partial(compile_and_check, network, [(4, 16), (4, 8)], torch.float32, torch.device("cpu"))
    if compiler is wrongly:
        with pytest.raises(ValueError, match=r"engine.compile: torch .* at 16 pixels its gradient is 100%"):
            check()
    else:
        check()
        for name, value in network.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert all(one.grad is None for one in network.parameters())


def test_a_backbone_that_draws_other_numbers_when_it_is_compiled_is_not_refused(monkeypatch):
    network, draws = tiny_network(), iter(range(99))

    def dropped(_module, _images, features):
        torch.manual_seed(next(draws))  # as the compiled network's own generator
        return torch.nn.functional.dropout(features, 0.5)

    network.backbone.register_forward_hook(dropped)
    monkeypatch.setattr("training.compiled.compile_network", lambda network, **_: None)
    compile_and_check(network, [(4, 16)], torch.float32, torch.device("cpu"))


def test_a_frozen_backbone_is_compiled_without_a_check(monkeypatch):
    network, compiled = tiny_network().requires_grad_(False), []
    monkeypatch.setattr("training.compiled.compile_network", lambda own, **_: compiled.append(own))
    compile_and_check(network, [(4, 16)], torch.float32, torch.device("cpu"))
    assert compiled == [network]

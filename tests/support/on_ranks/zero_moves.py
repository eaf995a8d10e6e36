"""Run on ranks by tests of ZeRO: a deliberate overflow, and moves to other numbers of ranks."""

import itertools
import json
import os
import warnings

import torch
import torch.distributed as dist

from config.recipe import load_config
from perf.step.steps import Steps
from perf.zero_ranks import Training
from training.auto import fit
from training.checkpoint.save_load import latest_checkpoint
from training.distributed import Cluster, connected
from training.zero import _scaler


def start(rank, case, port):
    warnings.simplefilter("ignore")
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": case.ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in own.items()} | {"DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    if case.precision == "fp16":
        from deepspeed.accelerator import get_accelerator

        type(get_accelerator()).is_fp16_supported = lambda self: True
    return Cluster(rank, case.ranks, rank, case.ranks)


def training_state(training):
    return {name: tensor.clone() for name, tensor in training.tensors().items() if not name.startswith("own/")}


def channels_last(tensor):
    return tensor is not None and tensor.is_contiguous(memory_format=torch.channels_last)


def memory_formats(rank, case, port, folder):
    """A step of the tiny recipe in `folder`; writes, of each convolution of more than a pixel, whether its weight,
    gradient and momentum are channels-last."""
    cluster = start(rank, case, port)
    settings = [f"engine.stage={case.stage}", f"engine.precision={case.precision}", "run.epochs=1"]
    config = load_config([str(folder / "tiny.yaml"), *settings])
    fit(config, 64, cluster)
    with connected(cluster):
        steps = Steps(config, cluster, 64)
        weights, gradients = [p for p in steps.network.parameters() if p.ndim == 4 and p.shape[2] > 1], {}
        for weight in weights:
            weight.register_post_accumulate_grad_hook(lambda p: gradients.update({p: channels_last(p.grad)}))
        steps.step(itertools.repeat(steps.noise(channels_last=True)))
        momenta = [steps.optimizer.state.get(weight, {}).get("momentum_buffer") for weight in weights]
        found = [[channels_last(w), gradients[w], channels_last(m)] for w, m in zip(weights, momenta, strict=True)]
        (folder / "formats.json").write_text(json.dumps(found))


def move(rank, case, port, folder, source, first, steps):
    """Go on from the newest checkpoint of `source` (None: from the start) for `steps` steps; save before and after."""
    cluster = start(rank, case, port)
    with connected(cluster):
        training = Training(case, cluster)
        if source is not None:
            training.load(latest_checkpoint(source))
        training.save(folder / "before", first)
        losses = [training.step(step)[0] for step in range(first, first + steps)]
        training.save(folder / "after", first + steps)
        if rank == 0:
            (folder / "losses.json").write_text(json.dumps(losses))


def overflow(rank, case, port, folder):
    """Two steps, one whose gradients overflow, one more."""
    cluster = start(rank, case, port)
    with connected(cluster):
        training = Training(case, cluster)
        scaler = _scaler(training.engine)
        scaler.cur_scale = 2.0**10
        training.step(0)
        training.step(1)
        before, scale = training_state(training), 2.0**60
        scaler.cur_scale = scale
        training.step(2)
        after = training_state(training)
        facts = {
            "applied": training.engine.was_step_applied(),
            "halved": scaler.cur_scale == scale / 2,
            "same": before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before),
        }
        scaler.cur_scale = 2.0**10
        training.step(3)
        then = training_state(training)
        facts["goes_on"] = training.engine.was_step_applied() and any(not torch.equal(after[k], then[k]) for k in after)
        everyone = [None] * case.ranks
        dist.all_gather_object(everyone, facts)
        if rank == 0:
            (folder / "found.json").write_text(json.dumps(everyone))

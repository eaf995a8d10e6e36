"""One rank of perf.zero_check: SwAV's steps on the golden network, with queue, frozen prototypes and LARS.

Codes and loss are written out here again, without model/objective.py: the check stays independent of that module, so a
mistake there shows.

The network is that of the golden training loop (bottleneck ResNet, one block a stage). Images are noise that depends
only on the step, so any number of ranks sees the same global batch. Small crops have 24 pixels, not 16: with 16 a
3x3 convolution of stride 2 sees a single pixel, for which torch 2.11 on a CPU gives NaN as bfloat16 weight gradient.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from torch import Tensor

from config.recipe import default_config

BATCH, PROTOTYPES, DIM = 32, 30, 16
GOLDEN: dict[str, Any] = {"options": {"layers": (1, 1, 1, 1)}, "sizes": ((2, 32), (3, 24))}
TINY: dict[str, Any] = {
    "options": {"block": "basic", "layers": (1, 1), "base_width": 8, "stem": "small", "stem_stride": 2},
    "sizes": ((2, 16), (3, 8)),
}
QUEUE, QUEUE_FROM, FROZEN, RATE = 96, 4, 3, 0.3
NOISE = "projection_head.0.bias"  # in front of a batch norm: its gradient is zero except for rounding
FILE = "rank0.json"


@dataclass(frozen=True)
class Case:
    """A training to run: ZeRO `stage` on `ranks` processes, in `precision` (fp32, bf16, fp16, or fp64 without visible
    rounding), each step in `accumulation` parts, with batch norm synchronized over `sync` ranks (0: all).

    tiny: a smaller network, for results that do not depend on the network. frozen_backbone: first steps, in which it
    does not move; backbone_scale: of its learning rate. on_gpu: a GPU for each rank; otherwise all ranks use the CPU,
    even if there are GPUs. overlap: overlap_comm, None for DeepSpeed's default.
    """

    stage: int
    ranks: int
    precision: str = "fp32"
    accumulation: int = 1
    sync: int = 1
    offload: bool = False
    optimizer: str = "lars"
    tiny: bool = False
    frozen_backbone: int = 0
    backbone_scale: float = 1.0
    on_gpu: bool = False
    overlap: bool | None = None


def run_rank(rank: int, case: Case, folder: Path, states: int, steps: int, reference: Path | None) -> None:
    """Run rank `rank` of a case; rank 0 writes the result to `folder`/rank0.json.

    Without `reference` it takes `states` steps and saves the state before and after each in `folder`/states. With
    `reference`, the folder of such a case, it takes one step from each of those states and compares. Then it takes
    `steps` steps from the start, for the losses.
    """
    if case.on_gpu:
        torch.backends.cudnn.allow_tf32 = False  # the check compares rounding
        torch.backends.cudnn.deterministic = True
    from training.distributed import Cluster, connected

    if (
        case.precision in ("fp16", "fp64") and not case.on_gpu
    ):  # DeepSpeed refuses them on CPUs, although torch computes
        from deepspeed.accelerator import get_accelerator

        type(get_accelerator()).is_fp16_supported = lambda self: True
        dtypes = [torch.float64, *get_accelerator().supported_dtypes()]
        type(get_accelerator()).supported_dtypes = lambda self: dtypes
    cluster = Cluster(rank, case.ranks, rank, case.ranks)
    with connected(cluster):
        training = Training(case, cluster)
        result: dict[str, Any] = {"case": asdict(case)}
        if reference is None:
            result["trust_ratios"] = []
            for step in range(states):
                training.save(folder / "states", step)
                result["trust_ratios"].append(training.step(step)[1])
            training.save(folder / "states", states)
            training = Training(case, cluster)
        else:
            reference_result = json.loads((reference / FILE).read_text())
            result |= training.compare(reference / "states", states, reference_result["trust_ratios"])
            training = Training(case, cluster)
        result["losses"] = [training.step(step)[0] for step in range(steps)]
        if rank == 0:
            (folder / FILE).write_text(json.dumps(result))


class Training:
    """New network, optimizer, queue and engine of a case on this rank."""

    def __init__(self, case: Case, cluster: Any) -> None:
        from model.backbone import build_backbone
        from model.optimizer.build import build_optimizer
        from model.queue import EmbeddingQueue
        from model.swav import SwAV
        from training.deepspeed_engine import build_engine, input_dtype

        self.case, self.cluster = case, cluster
        torch.manual_seed(0)
        self.setup = TINY if case.tiny else GOLDEN
        self.device = cluster.device()
        self.network = SwAV(build_backbone("resnet", **self.setup["options"]), 64, DIM, PROTOTYPES).to(self.device)
        if case.precision == "fp64":
            self.network.double()
        self.config = _config(case)
        self.optimizer = build_optimizer(self.config.optimizer, self.network, case.frozen_backbone > 0)
        self.queue = EmbeddingQueue(2, QUEUE, DIM, global_batch=BATCH, world_size=case.ranks, device=self.device)
        if case.precision == "fp64":
            self.queue.embeddings = self.queue.embeddings.double()
        self.engine = build_engine(self.config, self.network, self.optimizer, cluster, self.device)
        # Stage 0 has channels-last weights, the others have not: their convolutions round differently.
        self.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.dtype = torch.float64 if case.precision == "fp64" else input_dtype(self.config)

    def step(self, step: int) -> tuple[float, list[float]]:
        """Take one step on the images of `step`; returns the mean loss over ranks and parts, and all trust ratios."""
        from model.loss import swapped_prediction
        from model.optimizer.build import set_step
        from model.sinkhorn import sinkhorn
        from pipeline.batch import split_batch

        rate = RATE if self.case.optimizer == "lars" else RATE / 300
        self.network.backbone_frozen = step < self.case.frozen_backbone
        set_step(self.optimizer, rate, step < FROZEN, self.network.backbone_frozen)
        parts, batch = self.case.accumulation, BATCH // self.case.ranks
        losses = []
        for part in split_batch(self._images(step), batch, parts):
            queued = self.queue.queued() if step >= QUEUE_FROM else None
            embeddings, scores, queue_scores, _ = self.engine(part, batch // parts, queued)
            targets = scores[:2].detach()
            if queue_scores is not None:
                targets = torch.cat([queue_scores, targets], dim=1)
            codes = sinkhorn(targets, 0.05, 3)[:, -(batch // parts) :]
            self.queue.push(embeddings[:2])
            loss = swapped_prediction(codes, scores, (0, 1), 0.1)
            self.engine.backward(loss)
            self.engine.step()
            losses.append(loss.detach().double())
        mean = torch.stack(losses).mean()
        dist.all_reduce(mean)
        ratios = getattr(self.optimizer, "trust_ratios", torch.empty(0))
        return float(mean) / self.case.ranks, ratios.tolist()

    def _images(self, step: int) -> list[Tensor]:
        """This rank's rows of the step's global batch: a tensor per resolution, view-major."""
        generator = torch.Generator().manual_seed(1000 + step)
        batch = BATCH // self.case.ranks
        crops = []
        for views, size in self.setup["sizes"]:
            images = torch.randn(views, BATCH, 3, size, size, generator=generator)
            own_images = images[:, self.cluster.rank * batch : (self.cluster.rank + 1) * batch]
            crops.append(own_images.flatten(0, 1).to(self.device, self.dtype))
        return crops

    def save(self, folder: Path, step: int) -> None:
        from training.checkpoint.masters import network_shapes
        from training.checkpoint.save_load import save_checkpoint
        from training.zero import loss_scale

        state = {"step": step, "loss_scale": loss_scale(self.engine), **network_shapes(self.network, self.optimizer)}
        save_checkpoint(folder, state, self.tensors() | self.queue.state_tensors(), keep=10**6)

    def tensors(self) -> dict[str, Tensor]:
        """Masters, optimizer state and buffers of this rank by their names in a checkpoint."""
        from training.checkpoint.masters import network_tensors

        return network_tensors(self.network, self.optimizer, self.cluster.rank, self.cluster.world_size)

    def load(self, checkpoint: Path) -> None:
        from training.checkpoint.masters import load_network
        from training.checkpoint.save_load import load_checkpoint
        from training.zero import publish

        rank, world_size = self.cluster.rank, self.cluster.world_size
        state, saved = load_checkpoint(checkpoint)
        load_network(state, saved, self.network, self.optimizer, rank, world_size)
        self.queue.load_state_tensors(saved.ranks, rank, world_size)
        publish(self.engine)

    # ------------------------------------------------------------------ against a reference
    def compare(self, states: Path, count: int, trust_ratios: list[list[float]]) -> dict[str, Any]:
        """Take one step from each saved state; returns the largest deviations over states and parameters.

        states: folder of checkpoints step-N, before and after each of `count` steps of the reference; trust_ratios: its
        trust ratios of each step.
        """
        assert self.optimizer.layout is not None
        names = self.optimizer.layout.names
        columns = [number for number, name in enumerate(names) if name != NOISE]
        worst = {"update": 0.0, "whole_update": 0.0, "momentum": 0.0, "trust_ratio": 0.0}
        for step in range(count):
            before, after = (states / f"step-{number:09d}" for number in (step, step + 1))
            self.load(before)
            ratios = torch.tensor(self.step(step)[1])
            difference, update, state_difference, state = self._norms(before, after)[:, columns].unbind()
            deviations = {
                "update": float((difference / update.clamp_min(1e-30)).max()),
                "whole_update": float(difference.norm() / update.norm()),
                "momentum": float((state_difference / state.clamp_min(1e-30)).max()),
            }
            if len(ratios):
                deviations["trust_ratio"] = float((ratios / torch.tensor(trust_ratios[step]) - 1).abs()[columns].max())
            worst = {name: max(value, deviations.get(name, 0.0)) for name, value in worst.items()}
        return {f"{name}_deviation": value for name, value in worst.items()} | {"states": count, "excluded": [NOISE]}

    def _norms(self, before: Path, after: Path) -> Tensor:
        """(4, parameters) float64 norms over all ranks: of the difference to the reference's update, of that update, of
        the difference to its optimizer state, and of that state.

        A difference of updates counts only above the last bit of the parameter: that bit is 1e-5 of an update, and
        rounding decides it.
        """
        from training.checkpoint.save_load import load_checkpoint

        layout = self.optimizer.layout
        assert layout is not None
        (_, old), (_, new) = load_checkpoint(before), load_checkpoint(after)
        sums = torch.zeros(4, len(layout.names), dtype=torch.float64)
        for tensor, segments in layout.tensors.items():
            own_state = self.optimizer.state[tensor]
            state_name = next((name for name in ("momentum_buffer", "exp_avg") if name in own_state), "")
            states = layout.pieces(tensor, own_state[state_name]) if state_name else [None] * len(segments)
            for segment, piece, state in zip(segments, layout.pieces(tensor, tensor.detach()), states, strict=True):
                slice_of = layout.names[segment.parameter], segment.start, segment.length
                start = old.read("master", *slice_of).double()
                expected = new.read("master", *slice_of).double() - start
                difference = piece.reshape(-1).double().cpu() - start - expected
                last_bit = (start + expected).abs() * torch.finfo(piece.dtype).eps
                difference = (difference.abs() - last_bit).clamp_min(0)
                values = [difference, expected]
                if state is not None:
                    saved = new.read(state_name, *slice_of).double()
                    values += [state.reshape(-1).double().cpu() - saved, saved]
                for row, value in enumerate(values):
                    sums[row, segment.parameter] += value.square().sum()
        return layout.add_up(sums.to(self.device)).sqrt().cpu()


def _config(case: Case) -> Any:
    """The settings of a case, all others at their defaults."""
    engine = {
        "stage": case.stage,
        "precision": "fp32" if case.precision == "fp64" else case.precision,
        "accumulation": case.accumulation,
        "sync_batch_norm": case.sync,
        "offload": case.offload,
    }
    if case.overlap is not None:
        engine["deepspeed"] = {"zero_optimization": {"overlap_comm": case.overlap}}
    if case.precision == "fp16":  # with 2**16 stage 0 skips the first step and is then a step behind
        engine["deepspeed"] = {"fp16": {"initial_scale_power": 10}}
    optimizer = {"name": case.optimizer, "base_lr": RATE, "weight_decay": 1e-4}
    optimizer |= {"backbone_lr_scale": case.backbone_scale}
    return OmegaConf.merge(default_config(), {"run": {"batch_size": BATCH}, "optimizer": optimizer, "engine": engine})

"""One rank of perf.zero_check: SwAV's steps on the golden network, with queue, frozen prototypes and LARS.

Codes and loss are written out here once more, without model/objective.py: what this check compares is an independent
witness of the step, which a mistake there does not change as well.

The network is that of the golden training loop (bottleneck ResNet, a block a stage); images are noise that depends on
the step alone, so that any number of ranks sees the same global batch. Small crops are of 24 pixels, not 16: torch 2.11
on a CPU gives NaN for the weight gradient of a bfloat16 3x3 convolution of stride 2 on one pixel, and 16 come to that.
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
NOISE = "projection_head.0.bias"  # in front of a batch norm: its gradient is zero, and what is computed is rounding
FILE = "rank0.json"


@dataclass(frozen=True)
class Case:
    """What is run: ZeRO `stage` on `ranks` processes, in `precision` (fp64 too, to have rounding out of the way), each
    step in `accumulation` parts, batch norm synchronised over `sync` ranks (0: all). tiny: another network, for what
    does not depend on it. on_gpu: a GPU for each rank; otherwise all is done on the CPU, whatever there is. overlap: of
    communication and backward."""

    stage: int
    ranks: int
    precision: str = "fp32"
    accumulation: int = 1
    sync: int = 1
    offload: bool = False
    optimizer: str = "lars"
    tiny: bool = False
    on_gpu: bool = False
    overlap: bool | None = None


def run_rank(rank: int, case: Case, folder: Path, states: int, steps: int, reference: Path | None) -> None:
    """As rank `rank` of a case: `steps` steps, then, given a `reference`'s folder, from each of its `states` states one
    step that is compared with its. Rank 0 writes `folder`/rank0.json, and a case without reference its states."""
    if case.on_gpu:
        torch.backends.cudnn.allow_tf32 = False  # rounding is what is compared
        torch.backends.cudnn.deterministic = True
    from training.distributed import Cluster, connected

    if case.precision in ("fp16", "fp64") and not case.on_gpu:  # DeepSpeed refuses them on CPUs, torch computes them
        from deepspeed.accelerator import get_accelerator

        type(get_accelerator()).is_fp16_supported = lambda self: True
        dtypes = [torch.float64, *get_accelerator().supported_dtypes()]
        type(get_accelerator()).supported_dtypes = lambda self: dtypes
    cluster = Cluster(rank, case.ranks, rank, case.ranks)
    with connected(cluster):
        training = Training(case, cluster)
        found: dict[str, Any] = {"case": asdict(case)}
        if reference is None:
            found["trust_ratios"] = []
            for step in range(states):
                training.save(folder / "states", step)
                found["trust_ratios"].append(training.step(step)[1])
            training.save(folder / "states", states)
            training = Training(case, cluster)
        else:
            first = json.loads((reference / FILE).read_text())
            found |= training.compare(reference / "states", states, first["trust_ratios"])
            training = Training(case, cluster)
        found["losses"] = [training.step(step)[0] for step in range(steps)]
        if rank == 0:
            (folder / FILE).write_text(json.dumps(found))


class Training:
    """Network, optimizer, queue and engine of a case on this rank, all new."""

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
        self.optimizer = build_optimizer(self.config.optimizer, self.network)
        self.queue = EmbeddingQueue(2, QUEUE, DIM, global_batch=BATCH, world_size=case.ranks, device=self.device)
        if case.precision == "fp64":
            self.queue.embeddings = self.queue.embeddings.double()
        self.engine = build_engine(self.config, self.network, self.optimizer, cluster, self.device)
        self.dtype = torch.float64 if case.precision == "fp64" else input_dtype(self.config)

    def step(self, step: int) -> tuple[float, list[float]]:
        """One step on the images of `step`: the mean loss of the ranks and parts, and all trust ratios."""
        from model.loss import swapped_prediction
        from model.optimizer.build import set_step
        from model.sinkhorn import sinkhorn
        from pipeline.batch import split_batch

        rate = RATE if self.case.optimizer == "lars" else RATE / 300
        set_step(self.optimizer, rate, frozen_prototypes=step < FROZEN)
        parts, here = self.case.accumulation, BATCH // self.case.ranks
        losses = []
        for part in split_batch(self._images(step), here, parts):
            queued = self.queue.queued() if step >= QUEUE_FROM else None
            embeddings, scores, queue_scores, _ = self.engine(part, here // parts, queued)
            targets = scores[:2].detach()
            if queue_scores is not None:
                targets = torch.cat([queue_scores, targets], dim=1)
            codes = sinkhorn(targets, 0.05, 3)[:, -(here // parts) :]
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
        here = BATCH // self.case.ranks
        crops = []
        for views, size in self.setup["sizes"]:
            images = torch.randn(views, BATCH, 3, size, size, generator=generator)
            mine = images[:, self.cluster.rank * here : (self.cluster.rank + 1) * here]
            crops.append(mine.flatten(0, 1).to(self.device, self.dtype))
        return crops

    def save(self, folder: Path, step: int) -> None:
        from training.checkpoint.masters import network_shapes
        from training.checkpoint.save_load import save_checkpoint
        from training.zero import loss_scale

        state = {"step": step, "loss_scale": loss_scale(self.engine), **network_shapes(self.network, self.optimizer)}
        save_checkpoint(folder, state, self.tensors() | self.queue.state_tensors(), keep=10**6)

    def tensors(self) -> dict[str, Tensor]:
        """This rank's masters, optimizer state and buffers by their names in a checkpoint."""
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
        """From each state one step; the largest deviations from the reference's, over states and parameters."""
        assert self.optimizer.layout is not None
        names = self.optimizer.layout.names
        kept = [number for number, name in enumerate(names) if name != NOISE]
        worst = {"update": 0.0, "whole_update": 0.0, "momentum": 0.0, "trust_ratio": 0.0}
        for step in range(count):
            before, after = (states / f"step-{number:09d}" for number in (step, step + 1))
            self.load(before)
            ratios = torch.tensor(self.step(step)[1])
            wrong, right, state_wrong, state_right = self._norms(before, after)[:, kept].unbind()
            found = {
                "update": float((wrong / right.clamp_min(1e-30)).max()),
                "whole_update": float(wrong.norm() / right.norm()),
                "momentum": float((state_wrong / state_right.clamp_min(1e-30)).max()),
            }
            if len(ratios):
                found["trust_ratio"] = float((ratios / torch.tensor(trust_ratios[step]) - 1).abs()[kept].max())
            worst = {name: max(value, found.get(name, 0.0)) for name, value in worst.items()}
        return {f"{name}_deviation": value for name, value in worst.items()} | {"states": count, "excluded": [NOISE]}

    def _norms(self, before: Path, after: Path) -> Tensor:
        """(4, parameters) over all ranks: |update - the reference's|, |the reference's|, and likewise of momentum. Of
        the update what goes beyond the parameter's last bit, which is 1e-5 of an update and falls as rounding will."""
        from training.checkpoint.save_load import load_checkpoint

        layout = self.optimizer.layout
        assert layout is not None
        state_name = "momentum_buffer" if self.case.optimizer == "lars" else "exp_avg"
        (_, old), (_, new) = load_checkpoint(before), load_checkpoint(after)
        sums = torch.zeros(4, len(layout.names), dtype=torch.float64)
        for tensor, segments in layout.tensors.items():
            own_state = self.optimizer.state[tensor].get(state_name)
            states = layout.pieces(tensor, own_state) if own_state is not None else [None] * len(segments)
            for segment, piece, state in zip(segments, layout.pieces(tensor, tensor.detach()), states, strict=True):
                where = layout.names[segment.parameter], segment.start, segment.length
                start = old.read("master", *where).double()
                expected = new.read("master", *where).double() - start
                difference = piece.reshape(-1).double().cpu() - start - expected
                last_bit = (start + expected).abs() * torch.finfo(piece.dtype).eps
                difference = (difference.abs() - last_bit).clamp_min(0)
                values = [difference, expected]
                if state is not None:
                    saved = new.read(state_name, *where).double()
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
    if case.precision == "fp16":  # from 2**16 on stage 0 would skip the first step, and be a step behind
        engine["deepspeed"] = {"fp16": {"initial_scale_power": 10}}
    optimizer = {"name": case.optimizer, "base_lr": RATE, "weight_decay": 1e-4}
    return OmegaConf.merge(default_config(), {"run": {"batch_size": BATCH}, "optimizer": optimizer, "engine": engine})

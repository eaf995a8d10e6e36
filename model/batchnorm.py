"""Batch norm in at least float32, with statistics synchronized over a group of ranks (Ioffe and Szegedy, arXiv
1502.03167).

torch's BatchNorm refuses half-precision weights with float32 running statistics, which DeepSpeed's fp16 engine makes.
torch's SyncBatchNorm refuses CPU tensors and waits for the device in every forward pass.

Forward takes one all-gather: each rank sends its count, its mean and its sum of squared deviations from that mean, and
every rank combines them in the same way (Chan et al., 1983). An all-reduce of the sums of x and x^2 would need as many
messages, but the difference of two large numbers loses the variance if |mean| >> std; shifting by the running mean,
which ranks share, does not help at the start of training, when it is 0. Backward takes one all-reduce of the sums of dy
and dy * (x - mean).
"""

import functools
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed import _functional_collectives as functional_collectives
from torch.nn import functional


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """nn.BatchNorm1d, 2d and 3d in one class, with their arguments, parameters, buffers and state dict.

    group: the ranks whose batches count as one batch in training mode; None, or a group of one rank, is this rank
        alone. Each rank needs at least one sample; batch sizes may differ.
    equal_batches: the ranks promise batches of one size, so they need not send their counts.

    Computes in float32 (float64 for float64 inputs), whatever the dtype of the weights and the state of autocast; the
    output has the input's dtype and memory format. Buffers keep their dtype: leave them in float32 when parameters
    become half. The host never waits for the device (except with momentum=None, the cumulative average, as in torch).

    Activation checkpointing (both kinds of torch, and DeepSpeed's): a forward pass inside a backward pass is a
    recomputation. It does not change the running statistics and repeats the all-gather; all ranks do so together,
    because they run the same graph. Apply torch.compile around a checkpoint, not inside it: a compiled function cannot
    detect the recomputation.
    """

    group: "dist.ProcessGroup | None" = None
    equal_batches = False

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        group: "dist.ProcessGroup | None" = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.group = group

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *space"]:
        synchronized = self.training and self.group is not None and self.group.size() > 1
        out = self._normalize(x, self.group if synchronized else None)
        # Exists only on modules that were timm's BatchNormAct2d, whose forward does the same.
        act = getattr(self, "act", None)
        return out if act is None else act(self.drop(out))  # type: ignore[operator]

    def _normalize(self, x: Tensor, group: "dist.ProcessGroup | None") -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        weight = None if self.weight is None else self.weight.to(dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        running_mean, running_var, momentum = self.running_mean, self.running_var, self.momentum or 0.0
        batch_statistics = self.training or running_mean is None
        if self.training and not self.track_running_stats:
            running_mean = running_var = None
        elif self.training and _recomputing():
            momentum = 0.0  # statistics are passed on, because a checkpoint expects as many saved tensors as before
        elif self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        if group is not None:
            running = running_mean, running_var, momentum
            return synchronized_batch_norm(x, weight, bias, *running, self.eps, group, self.equal_batches)
        # CUDA and CPU accept half inputs with float32 weights, but the CPU rounds between the steps of backward.
        wide = x if x.is_cuda else x.to(dtype)
        out = functional.batch_norm(wide, running_mean, running_var, weight, bias, batch_statistics, momentum, self.eps)
        return out.to(x.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions."""

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.group is None else f", ranks={self.group.size()}")


def replace_batch_norm(
    network: nn.Module, group_size: int, world_size: int, rank: int, equal_batches: bool = False
) -> None:
    """Turn every batch norm of the network into a `BatchNorm`, in place, synchronized over groups of ranks.

    group_size: consecutive ranks that share statistics; 0 is all ranks, 1 does not synchronize. The last group may be
        smaller.
    world_size, rank: of torch.distributed's default group. All ranks call this together.
    equal_batches: the ranks promise batches of one size.

    Modules, parameters, buffers, hooks and the activation of timm's BatchNormAct2d remain the same objects.

    Raises ValueError for a negative group size, and for a batch norm of another class with a different forward.
    """
    if group_size < 0:
        raise ValueError(
            f"batch norm over groups of {group_size} ranks; give 0 (all ranks), 1 (not synchronized) or more"
        )
    norms = {name: m for name, m in network.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    for name, module in norms.items():
        plain = type(module).forward in (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward, BatchNorm.forward)
        if not (plain or (hasattr(module, "act") and hasattr(module, "drop"))):
            raise ValueError(
                f"batch norm {name or 'network'} is a {type(module).__name__}, which computes more than one"
            )

    group = _group_of(rank, group_size or world_size, world_size)
    for module in norms.values():
        # Changing the class, as torch's lazy modules do, keeps the module's content and all references to it.
        module.__class__ = BatchNorm
        module.group = group  # type: ignore[assignment]
        module.equal_batches = equal_batches  # type: ignore[assignment]


def _group_of(rank: int, size: int, world_size: int) -> "dist.ProcessGroup | None":
    own_group = None
    for first in range(0, world_size, size):
        ranks = list(range(first, min(first + size, world_size)))
        if len(ranks) > 1:
            # A new group even for all ranks: the default one's communicator would queue them behind gradient buckets.
            group = dist.new_group(ranks)
            own_group = group if rank in ranks else own_group
    return own_group


def synchronized_batch_norm(
    x: Float[Tensor, "batch channels *space"],
    weight: Float[Tensor, " channels"] | None,
    bias: Float[Tensor, " channels"] | None,
    running_mean: Float[Tensor, " channels"] | None,
    running_var: Float[Tensor, " channels"] | None,
    momentum: float,
    eps: float,
    group: "dist.ProcessGroup",
    equal_batches: bool = False,
) -> Float[Tensor, "batch channels *space"]:
    """functional.batch_norm in training mode over the batches of all ranks of the group.

    x: at least one sample, of any float dtype; all other tensors are float32, or float64 with x. The running
    statistics, if given, are updated in place, to the same values on all ranks. Each rank returns its part of the
    parameter gradients, which sum over the ranks to the whole. With `equal_batches` all ranks give x of one shape, and
    no counts are sent. Raises ValueError for an empty x.
    """
    if x.numel() == 0:
        raise ValueError(f"synchronized batch norm needs a sample on each rank, got shape {tuple(x.shape)}")
    x = x.contiguous(memory_format=_memory_format(x))
    with torch.no_grad():
        statistics = _joint_statistics(x, running_mean, running_var, momentum, eps, group, equal_batches)
    return _Normalization.apply(x, weight, bias, *statistics, eps, group)


def _joint_statistics(
    x: Float[Tensor, "batch channels *space"],
    running_mean: Float[Tensor, " channels"] | None,
    running_var: Float[Tensor, " channels"] | None,
    momentum: float,
    eps: float,
    group: "dist.ProcessGroup",
    equal_batches: bool,
) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"], Float[Tensor, " ranks"]]:
    """Mean and 1 / std over all ranks, per channel, and the values per channel of each rank."""
    mean, spread = torch.batch_norm_stats(x, eps) if _fused(x) else _local_statistics(x)
    count, ranks, width = x.numel() // len(mean), group.size(), len(mean)
    own_count = [] if equal_batches else [mean.new_full((1,), count)]
    gathered = _gathered(torch.cat([mean, spread, *own_count]), group).view(ranks, -1)
    means, spreads = gathered[:, :width], gathered[:, width : 2 * width]
    counts = _constant(count, ranks, mean) if equal_batches else gathered[:, -1]
    if _fused(x):
        # The first argument only gives the dtype of counts without running statistics: half ends at 65504.
        mean, invstd = torch.batch_norm_gather_stats_with_counts(
            mean, means, spreads, running_mean, running_var, momentum, eps, counts
        )
        # Backward takes integers.
        counts = _constant(count, ranks, mean, torch.int32) if equal_batches else counts.int()
    else:
        mean, invstd = _combined_statistics(means, spreads, counts[:, None], running_mean, running_var, momentum, eps)
    return mean, invstd, counts


class _Normalization(torch.autograd.Function):
    """(x - mean) * invstd * weight + bias, with the gradient through the statistics of all ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        counts: Tensor,
        eps: float,
        group: "dist.ProcessGroup",
    ) -> Tensor:
        if _fused(x):
            out = torch.batch_norm_elemt(x, weight, bias, mean, invstd, eps)
        else:
            scale = invstd if weight is None else invstd * weight
            out = (x - _wide(mean, x)) * _wide(scale, x)
            out = out if bias is None else out + _wide(bias, x)
            # Only where it changes something: a compiled function that returns x.to(x.dtype) has gradients of zero.
            out = out if out.dtype == x.dtype else out.to(x.dtype)
        ctx.save_for_backward(x, weight, mean, invstd, counts)
        ctx.group, ctx.given = group, (True, weight is not None, bias is not None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, invstd, counts = ctx.saved_tensors
        dy = dy.contiguous(memory_format=_memory_format(x))
        # While torch.compile traces this, needs_input_grad is False for every tensor that the graph computes.
        compiling = torch.compiler.is_compiling()
        needs_dx, needs_weight, needs_bias = ctx.given if compiling else ctx.needs_input_grad[:3]
        if _fused(x):
            dy_sum, dy_deviation_sum, weight_grad, bias_grad = torch.batch_norm_backward_reduce(
                dy, x, mean, invstd, weight, needs_dx, needs_weight, needs_bias
            )
        else:
            deviation = x - _wide(mean, x)
            dims = _all_but_channels(x)
            dy_sum, dy_deviation_sum = dy.sum(dims, dtype=mean.dtype), (dy * deviation).sum(dims)
            weight_grad, bias_grad = dy_deviation_sum * invstd, dy_sum

        dx = None
        if needs_dx:
            dy_sum, dy_deviation_sum = _added_up(torch.cat([dy_sum, dy_deviation_sum]), ctx.group).chunk(2)
            if _fused(x):
                dx = torch.batch_norm_backward_elemt(dy, x, mean, invstd, weight, dy_sum, dy_deviation_sum, counts)
            else:
                total = counts.sum()
                scale = invstd if weight is None else invstd * weight
                dx = dy - _wide(dy_sum / total, x) - deviation * _wide(dy_deviation_sum * invstd.square() / total, x)
                dx = (dx * _wide(scale, x)).to(x.dtype)
        return dx, weight_grad if needs_weight else None, bias_grad if needs_bias else None, *(5 * [None])


def _fused(x: Tensor) -> bool:
    """Whether torch's own CUDA kernels compute. A compiler fuses plain operations with those around them."""
    return x.is_cuda and not torch.compiler.is_compiling()


def _gathered(local: Float[Tensor, " numbers"], group: "dist.ProcessGroup") -> Float[Tensor, " all_numbers"]:
    """The numbers of all ranks, one after the other."""
    if torch.compiler.is_compiling():
        return functional_collectives.all_gather_tensor(local, 0, group)
    gathered = local.new_empty(group.size() * len(local))
    dist.all_gather_into_tensor(gathered, local, group=group)
    return gathered


def _added_up(sums: Float[Tensor, " numbers"], group: "dist.ProcessGroup") -> Float[Tensor, " numbers"]:
    """The sums over all ranks; may change its argument."""
    if torch.compiler.is_compiling():
        return functional_collectives.all_reduce(sums, "sum", group)
    dist.all_reduce(sums, group=group)
    return sums


def _constant(count: int, ranks: int, like: Tensor, dtype: torch.dtype | None = None) -> Float[Tensor, " ranks"]:
    """`count` for each rank. It is made once for all layers and steps, since each tensor made costs a kernel."""
    make = _full if torch.compiler.is_compiling() else _cached_full
    return make(count, ranks, dtype or like.dtype, like.device)


def _full(count: int, ranks: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((ranks,), count, dtype=dtype, device=device)


_cached_full = functools.lru_cache(maxsize=256)(_full)


def _local_statistics(
    x: Float[Tensor, "batch channels *space"],
) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]:
    """Mean and sum of squared deviations from it, per channel, in at least float32."""
    dims = _all_but_channels(x)
    mean = x.mean(dims, dtype=torch.promote_types(x.dtype, torch.float32))
    return mean, (x - _wide(mean, x)).square().sum(dims)


def _combined_statistics(
    means: Float[Tensor, "ranks channels"],
    squares: Float[Tensor, "ranks channels"],
    counts: Float[Tensor, "ranks 1"],
    running_mean: Float[Tensor, " channels"] | None,
    running_var: Float[Tensor, " channels"] | None,
    momentum: float,
    eps: float,
) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]:
    """Mean and 1 / std over all ranks, per channel; updates the running statistics in place."""
    total = counts.sum()
    mean = (means * (counts / total)).sum(dim=0)
    square = (squares + counts * (means - mean).square()).sum(dim=0)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(square / (total - 1), momentum)
    return mean, (square / total + eps).rsqrt()


def _recomputing() -> bool:
    """Whether this thread is in a backward pass; torch's checkpointing uses the same test."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _memory_format(x: Tensor) -> torch.memory_format:
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    if x.ndim == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
        return torch.channels_last_3d
    return torch.contiguous_format


def _all_but_channels(x: Tensor) -> list[int]:
    return [dim for dim in range(x.ndim) if dim != 1]


def _wide(values: Float[Tensor, " channels"], x: Tensor) -> Tensor:
    """Values per channel in a shape that broadcasts with x."""
    return values.view(-1, *([1] * (x.ndim - 2)))

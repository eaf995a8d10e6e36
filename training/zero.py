"""Where DeepSpeed 0.19.8 keeps the float32 masters of a network's parameters, and how it steps them.

Only this file uses DeepSpeed's internals. `bind` checks them against the network's own parameters before training.

    stage 0        fp32: the parameters themselves; fp16: a float32 copy of each
    stages 1, 2    a flat partition per group and rank; `_hp_mapping` says which slices of parameters it holds
    stage 3        a flat partition per sub-group and rank: a share of each parameter, padded to equal size
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.optimizer.segments import Layout, Segment


class UnexpectedDeepSpeed(ValueError):
    """DeepSpeed's internals differ from what this file expects; one line."""

    def __init__(self, what: str) -> None:
        import deepspeed

        super().__init__(f"DeepSpeed {deepspeed.__version__} is not as expected ({what}); install deepspeed==0.19.8")


def bind(engine: Any, network: nn.Module, optimizer: Any, groups: Sequence[Sequence[Tensor]]) -> Layout:
    """Give `optimizer` the layout of its tensors, and make DeepSpeed step all groups in one call.

    groups: the network's parameters in the optimizer's groups, before DeepSpeed replaced them. Returns the layout.
    Raises UnexpectedDeepSpeed, on all ranks, if the masters do not hold the network's parameters.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
    number = {p: index for index, p in enumerate(p for group in groups for p in group)}
    try:
        tensors = _tensors(engine, number, groups)
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise UnexpectedDeepSpeed(f"{type(error).__name__}: {error}") from None
    layout = Layout(
        [names[p] for p in number],
        [_shape(p) for p in number],
        [[number[p] for p in group] for group in groups],
        tensors,
        partitioned=engine.zero_optimization_stage() > 0 and dist.get_world_size() > 1,
        device=engine.device,
    )
    _verify(layout, list(number))
    if engine.zero_optimization_stage() > 0:
        _step_all_groups_in_one_call(engine.optimizer, optimizer, engine.zero_optimization_stage())
        if engine.zero_optimization_stage() == 3 and not engine.fp16_enabled() and not engine.gradient_clipping():
            _no_gradient_norm(engine.optimizer)
        _wait_on_the_device(engine.optimizer, engine.zero_optimization_stage())
    elif engine.fp16_enabled():
        _scale_the_loss(engine)
    scaler = _scaler(engine)
    if hasattr(scaler, "raise_error_at_min_scale"):  # only at some stages; SkippedSteps holds at all of them
        scaler.raise_error_at_min_scale = False
    optimizer.layout = layout
    return layout


def publish(engine: Any) -> None:
    """Copy the masters to the network's parameters, after a change of the masters. All ranks call it."""
    zero, stage = engine.optimizer, engine.zero_optimization_stage()
    with torch.no_grad():
        if stage == 3:
            zero._partition_all_parameters()
            for flat, masters in zip(zero.fp16_partitioned_groups_flat, zero.fp32_partitioned_groups_flat, strict=True):
                _copy_unless_same(flat, masters)
            if zero.persistent_parameters:
                zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
        elif stage > 0:
            zero.update_lp_params()
        elif engine.fp16_enabled():
            for halves, masters in zip(zero.fp16_groups, zero.fp32_groups, strict=True):
                for half, master in zip(halves, masters, strict=True):
                    half.data.copy_(master.data)


def write_parameter(engine: Any, optimizer: Any, name: str, values: Tensor) -> None:
    """Set a parameter, in its masters and in the network. values: of its shape, the same on all ranks."""
    layout: Layout = optimizer.layout
    number, flat = layout.names.index(name), values.detach().reshape(-1)
    for tensor, segments in layout.tensors.items():
        for segment, piece in zip(segments, layout.pieces(tensor, tensor.detach()), strict=True):
            if segment.parameter == number:
                piece.copy_(flat[segment.start : segment.start + segment.length].view(piece.shape))
    publish(engine)


SCALING = ("cur_scale", "cur_iter", "last_overflow_iter")


def loss_scale(engine: Any) -> dict[str, float]:
    """The state of fp16's dynamic loss scale, {} in other precisions."""
    scaler = _scaler(engine)
    return {name: getattr(scaler, name) for name in SCALING} if scaler is not None else {}


def load_loss_scale(engine: Any, state: dict[str, float]) -> None:
    """Restore a saved loss scale. Does nothing where this engine or the saved state has none.

    Raises KeyError or TypeError for a malformed state.
    """
    scaler = _scaler(engine)
    if scaler is not None and state:
        for name in SCALING:
            setattr(scaler, name, type(getattr(scaler, name))(state[name]))


def _scaler(engine: Any) -> Any:
    if not engine.fp16_enabled():
        return None
    return engine.optimizer.loss_scaler if engine.zero_optimization_stage() else engine.optimizer.loss_scale_config


def full(parameters: Sequence[Tensor]) -> Any:
    """A context in which every rank can read the whole parameters, which stage 3 partitions."""
    import deepspeed

    partitioned = [p for p in parameters if hasattr(p, "ds_id")]
    return deepspeed.zero.GatheredParameters(partitioned, enabled=bool(partitioned))


# ---------------------------------------------------------------------------------------------- where masters are
def _tensors(engine: Any, number: dict[Tensor, int], groups: Sequence[Sequence[Tensor]]) -> dict[Tensor, list[Segment]]:
    zero, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 3:
        return _stage_3(zero, number)
    if stage > 0:
        if len(zero.single_partition_of_fp32_groups) != len(groups):
            raise KeyError("another number of groups")
        pairs = zip(zero.single_partition_of_fp32_groups, groups, strict=True)
        return {flat: _slices(group, number) for flat, group in pairs}
    masters = [m for group in zero.fp32_groups for m in group] if engine.fp16_enabled() else list(number)
    return {m: [Segment(index, 0, 0, m.numel())] for m, index in zip(masters, number.values(), strict=True)}


def _slices(group: Sequence[Tensor], number: dict[Tensor, int]) -> list[Segment]:
    """Stages 1 and 2: the segments of one group in this rank's flat partition."""
    segments = []
    for parameter in group:
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]  # None: this rank holds no part of it
        if mapping is not None:
            low, high = mapping.lp_fragment_address, mapping.hp_fragment_address
            if low.numel != high.numel:
                raise KeyError("a fragment of two sizes")
            segments.append(Segment(number[parameter], low.start, high.start, low.numel))
    return sorted(segments, key=lambda segment: segment.offset)


def _stage_3(zero: Any, number: dict[Tensor, int]) -> dict[Tensor, list[Segment]]:
    tensors = {}
    for index, (flat, parameters) in enumerate(zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True)):
        rank = zero._get_sub_group_partition_rank(index)
        offset, segments = 0, []
        for parameter in parameters:
            share = parameter.partition_numel()
            start = share * rank
            length = min(share, parameter.ds_numel - start)  # the tail behind it is uninitialized memory
            if length > 0:
                segments.append(Segment(number[parameter], start, offset, length))
            offset += share
        if offset != flat.numel():
            raise KeyError("a partition of another size")
        tensors[flat] = segments
    return tensors


def _shape(parameter: Tensor) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)


# ---------------------------------------------------------------------------------------------- the check at the start
def _verify(layout: Layout, parameters: list[Tensor]) -> None:
    """Check that each element has its master on exactly one rank, where the layout says, with the parameter's value."""
    faults = torch.zeros(len(parameters), dtype=torch.int64)
    covered = torch.zeros(len(parameters), dtype=torch.int64)
    pieces: dict[int, list[tuple[Segment, Tensor]]] = {}
    for tensor, segments in layout.tensors.items():
        for segment, piece in zip(segments, layout.pieces(tensor, tensor.detach()), strict=True):
            pieces.setdefault(segment.parameter, []).append((segment, piece))
    for number, parameter in enumerate(parameters):
        with full([parameter]):
            values = parameter.detach().reshape(-1)
            for segment, piece in pieces.get(number, []):
                expected = values[segment.start : segment.start + segment.length]
                covered[number] += segment.length
                master = piece.reshape(-1).to(expected.device, expected.dtype)
                faults[number] += not torch.equal(master, expected)
    checked = layout.add_up(torch.stack([faults, covered]).to(layout.device)).cpu()
    for number, name in enumerate(layout.names):
        if checked[0, number] or checked[1, number] != layout.shapes[number].numel():
            raise UnexpectedDeepSpeed(f"the float32 master of {name} is not where it should be")


# ---------------------------------------------------------------------------------------------- the step
def _step_all_groups_in_one_call(zero: Any, optimizer: Any, stage: int) -> None:
    """Make one optimizer step move all groups, so that one all-reduce serves all norms.

    DeepSpeed steps one group after another and hides the others from the optimizer. This function holds back the
    gradients of all groups but the last; the call for the last group steps all of them.
    """
    masters = zero.fp32_partitioned_groups_flat if stage == 3 else zero.single_partition_of_fp32_groups
    group_of = zero.sub_group_to_group_id if stage == 3 else {index: index for index in range(len(masters))}
    held: dict[int, Tensor] = {}

    def step(index: int) -> None:
        held[index] = masters[index].grad
        if index < len(masters) - 1:
            return
        for number, gradient in held.items():
            masters[number].grad = gradient
        for number, group in enumerate(optimizer.param_groups):
            group["params"] = [m for m, g in zip(masters, group_of.values(), strict=True) if g == number]
        optimizer.step()
        for number in range(index):  # DeepSpeed copied these too early; it copies the last one itself
            if not zero_offloads:
                masters[number].grad = None
            copy_to_network(number)
        held.clear()

    def copy_to_network(number: int) -> None:
        if stage == 3:
            _copy_unless_same(zero.fp16_partitioned_groups_flat[number], masters[number])
        else:
            partition = zero.parallel_partitioned_bit16_groups[number][dist.get_rank()]
            partition.data.copy_(masters[number].data)

    zero_offloads = zero.offload_optimizer if stage == 3 else zero.cpu_offload
    original: Callable[[int], None] = zero._optimizer_step
    if not callable(original):
        raise UnexpectedDeepSpeed("no _optimizer_step")
    zero._optimizer_step = step


def _no_gradient_norm(zero: Any) -> None:
    """Skip the gradient norm, which stage 3 computes in every step: it is unused, and the host waits for it."""
    if not callable(getattr(zero, "_get_norm_groups", None)):
        raise UnexpectedDeepSpeed("no _get_norm_groups")
    zero._get_norm_groups = lambda: [0.0]


def _wait_on_the_device(zero: Any, stage: int) -> None:
    """Let the device's stream wait where DeepSpeed makes the host wait for the device in every step: at the end of a
    backward pass, for the reductions of gradients on a stream of their own (always at stage 3, with overlap_comm at 1
    and 2), and at stage 3 for the small parameters, gathered after a step. Nothing is changed on a CPU, which has no
    streams, nor with offload, where the host reads the gradients."""
    offloads = zero.offload_optimizer if stage == 3 else zero.cpu_offload
    stream = zero.reduce_and_partition_stream if stage == 3 else zero.reduction_stream
    if stream is None or offloads:
        return
    if stage == 3:
        stream.synchronize = lambda: _current_stream().wait_stream(stream)
        if zero.persistent_parameters:  # each gathering is waited for by the current stream, before the host waits too
            first = zero.persistent_parameters[0]
            first.all_gather = _synchronizing(first.all_gather, lambda *_: None)
    elif zero.overlap_comm:
        wait = lambda *_: _current_stream().wait_stream(stream)  # noqa: E731
        zero.independent_gradient_partition_epilogue = _synchronizing(
            zero.independent_gradient_partition_epilogue, wait
        )


def _current_stream() -> Any:
    from deepspeed.accelerator import get_accelerator

    return get_accelerator().current_stream()


def _synchronizing(function: Callable[..., Any], synchronize: Callable[..., None]) -> Callable[..., Any]:
    """`function`, in which DeepSpeed's synchronization of the device is `synchronize`."""
    from deepspeed.accelerator import get_accelerator

    def call(*arguments: Any, **named: Any) -> Any:
        accelerator = get_accelerator()
        accelerator.synchronize = synchronize  # hides the method of its class
        try:
            return function(*arguments, **named)
        finally:
            del accelerator.synchronize

    return call


def _scale_the_loss(engine: Any) -> None:
    """Multiply the loss by the loss scale. At stage 0 in fp16 DeepSpeed only divides the gradients by it."""
    backward = engine.backward
    engine.backward = lambda loss: backward(loss * engine.optimizer.loss_scale_config.cur_scale)


def _copy_unless_same(target: Tensor, source: Tensor) -> None:
    if target.data_ptr() != source.data_ptr():
        target.data.copy_(source.data)

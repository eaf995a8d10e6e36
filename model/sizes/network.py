"""Lets a network that was built for one image size take others, with the same weights.

timm builds many networks for one size: their tables of positions, windows and masks have its shape. For another size,
timm builds the same network a second time. What differs between the two is what depends on the size: plain attributes
and buffers of modules are exchanged while images of that size pass, and parameters of another shape are resampled
from the network's own (`model.sizes.tables`) in each forward pass. The second network is then dropped. So the network
has one set of parameters, whose names and shapes are those of the size it was built for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from model.sizes.tables import resample
from model.sizes.trial import computed_buffers, layer_of, problem, put_back

MISSING = object()
NOT_OF_THE_SIZE = ("training", "feature_dim", "forward")


@dataclass
class Changes:
    """What a size exchanges, by the names of modules: attributes and buffers, and the shapes of resampled
    parameters."""

    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)
    shapes: dict[str, dict[str, torch.Size]] = field(default_factory=dict)


class Sizes:
    """The image sizes of a network, whose forward pass it changes in place.

    build: makes the same network for a size in pixels; raises an exception if it cannot.

    `prepare` decides what a size needs; this happens for a size that was not prepared when its first images come.
    """

    def __init__(self, network: nn.Module, build: Callable[[int], nn.Module]) -> None:
        self.network, self.build = network, build
        self.changes: dict[int, Changes | None] = {}  # None: a size that the network takes as it is
        self.size = 0  # whose changes are in place; 0: none
        self.replaced: list[tuple[nn.Module, str, Any]] = []  # by these changes
        self.buffers: list[tuple[nn.Module, str, Tensor | None]] = []  # the own computed ones
        network.register_forward_pre_hook(self._before)
        network.register_forward_hook(self._after, always_call=True)

    def prepare(self, size: int) -> None:
        """Find out what images of this size need. Raises ValueError, one line, for a size that the network cannot be
        built for, and the network's own error if its builder takes no size."""
        if size in self.changes:
            return
        self.changes[size] = None
        if (error := problem(self.network, size)) is None:
            return
        del self.changes[size]
        try:
            with torch.random.fork_rng(devices=[]):
                other = self.build(size)
        except TypeError:  # its builder has no such option
            raise error from None
        changes = differences(self.network, other)
        if not changes.attributes:
            raise ValueError(f"its builder makes the same network for every size: {layer_of(error, self.network)}")
        for name, shapes in changes.shapes.items():
            module = self.network.get_submodule(name)
            for key, shape in shapes.items():
                _resampled(module, key, shape)  # raises ValueError where the shapes have nothing in common
            for method in methods_of(module):
                if method not in module.__dict__:
                    call = partial(self._call, method, name, module)
                    call.__signature__ = inspect.signature(getattr(module, method))  # type: ignore[attr-defined]
                    module.__dict__[method] = call  # with its signature, which torch.export looks at
        self.changes[size] = changes

    def _before(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        size = int(inputs[0].shape[-1])
        if size not in self.changes:
            self.prepare(size)
        self._exchange(0)
        self.buffers = computed_buffers(self.network)
        self._exchange(size)

    def _after(self, _module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        size = self.size
        self._own()
        if isinstance(output, Tensor) and output.requires_grad and not torch.compiler.is_compiling():
            output.register_hook(partial(self._recomputing, size))

    def _recomputing(self, size: int, _gradient: Tensor) -> None:
        """Before the backward pass of a size (0: of one without changes): in it, checkpointed blocks run forward
        again. Autograd finishes one forward pass before it starts on an earlier one."""
        self._exchange(size)
        torch.autograd.Variable._execution_engine.queue_callback(self._own)

    def _own(self) -> None:
        """Put back what the network has for its own size, and buffers that a forward pass computed anew: a checkpoint
        takes their shapes from here."""
        self._exchange(0)
        put_back(self.buffers)

    def _exchange(self, size: int) -> None:
        """Put the changes of a size in place; 0: those of none."""
        changes = self.changes.get(size)
        if (size if changes else 0) == self.size:
            return
        for module, key, own in reversed(self.replaced):
            if key in module._non_persistent_buffers_set:
                module._buffers[key] = own
            elif own is MISSING:
                object.__delattr__(module, key)
            else:
                object.__setattr__(module, key, own)
        self.replaced, self.size = [], 0
        if changes is None:
            return
        for name, attributes in changes.attributes.items():
            module = self.network.get_submodule(name)
            for key, value in attributes.items():
                if isinstance(value, Tensor):
                    value = attributes[key] = _like(value, module, key)
                if key in module._non_persistent_buffers_set:
                    self.replaced.append((module, key, module._buffers[key]))
                    module._buffers[key] = value
                    continue
                # An entry of the instance hides a buffer of that name, which stays in the module's state.
                self.replaced.append((module, key, module.__dict__.get(key, MISSING)))
                object.__setattr__(module, key, {} if value == {} else value)
        self.size = size

    def _call(self, method: str, name: str, module: nn.Module, *inputs: Any, **options: Any) -> Any:
        """A method of the module with the parameters of the current size. Here and not earlier, because under ZeRO
        stage 3 the whole parameters exist only inside the module's forward pass."""
        changes = self.changes.get(self.size)
        shapes = changes.shapes.get(name, {}) if changes else {}
        hidden = [key for key in shapes if key not in module.__dict__]  # not yet, by the method that calls this one
        for key in hidden:
            object.__setattr__(module, key, _resampled(module, key, shapes[key]))
        try:
            return getattr(type(module), method)(module, *inputs, **options)
        finally:
            for key in hidden:
                object.__delattr__(module, key)


def methods_of(module: nn.Module) -> list[str]:
    """The forward pass of a module and the other methods of its class: the layer around it may call them."""
    kind = type(module)
    own = [name for name in dir(kind) if not name.startswith("_") and not hasattr(nn.Module, name)]
    return ["forward", *(name for name in own if inspect.isfunction(inspect.getattr_static(kind, name)))]


def differences(own: nn.Module, other: nn.Module) -> Changes:
    """What to change in `own` so that it computes as `other`, the same network for another size of images. Raises
    ValueError, one line, if they are not the same network."""
    mine, theirs = dict(own.named_modules()), dict(other.named_modules())
    if odd := sorted(name for name in mine.keys() ^ theirs.keys()):
        raise ValueError(f"for this size it has other layers ({odd[0]})")
    changes = Changes()
    for name, module in mine.items():
        twin = theirs[name]
        if module._parameters.keys() != twin._parameters.keys():
            raise ValueError(f"for this size it has other parameters ({name})")
        attributes = {
            key: value
            for key, value in vars(twin).items()
            if not key.startswith("_")
            and key not in NOT_OF_THE_SIZE
            and not same(vars(module).get(key, MISSING), value)
        }
        for key, buffer in twin._buffers.items():
            if buffer is not None and not _same_buffer(module, key, buffer):
                attributes[key] = buffer
        shapes = {
            key: value.shape
            for key, value in twin._parameters.items()
            if value is not None and value.shape != module._parameters[key].shape
        }
        if attributes or shapes:  # what such a module has cached is of one size
            attributes |= {key: {} for key, value in vars(twin).items() if value == {} and not key.startswith("_")}
            changes.attributes[name] = attributes
        if shapes:
            changes.shapes[name] = shapes
    return changes


def same(one: Any, other: Any) -> bool:
    """Whether two attributes are equal, as far as they are plain values; functions and objects count as equal."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and not one.is_meta and not other.is_meta and torch.equal(one.cpu(), other)
    if type(one) is not type(other):
        return callable(one) and callable(other)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other if isinstance(one, bool | int | float | str) else True


def _same_buffer(module: nn.Module, key: str, other: Tensor) -> bool:
    """Whether a buffer does not depend on the size. Buffers of a state dict, such as running statistics, differ for
    other reasons, unless their shapes do."""
    own = module._buffers.get(key)
    if own is None or own.shape != other.shape:
        return False
    return key not in module._non_persistent_buffers_set or same(own, other)


def _like(value: Tensor, module: nn.Module, key: str) -> Tensor:
    """The tensor where and as the module's own is."""
    own = module._buffers.get(key)
    if own is None:
        return value
    return value.to(own.device, own.dtype if own.is_floating_point() else value.dtype)


def _resampled(module: nn.Module, key: str, shape: torch.Size) -> Tensor:
    table = module._parameters[key]
    assert table is not None
    return resample(table, shape, over_patches=isinstance(module, nn.Linear | nn.Conv1d))

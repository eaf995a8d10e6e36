"""Networks of shapes alone, for counting their parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

DRAWS = (Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_)


class _NoDraws(TorchFunctionMode):
    """Leaves out functions that fill a tensor with random numbers. On the meta device the first of them imports
    PyTorch's compiler, which takes a second."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if function in DRAWS or getattr(function, "__module__", "") == "torch.nn.init":
            return args[0] if args else given["tensor"]
        return function(*args, **given)


@contextmanager
def only_shapes() -> Iterator[None]:
    """Networks that are built in this block have parameters on the meta device: shapes and dtypes without values."""
    with torch.device("meta"), _NoDraws():
        yield

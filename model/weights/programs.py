"""Reads the tensors of programs that torch saved (TorchScript, torch.export), without running or unpickling them."""

from __future__ import annotations

import collections
import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_PT2_WEIGHTS = "data/weights/model_weights_config.json"
_DTYPES = {5: torch.int64, 6: torch.float16, 7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16}
_STORAGES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


def read_program(path: Path) -> dict[str, Any] | None:
    """Tensors by name, in nested mappings; None for a file that is no program. A damaged one raises an error of any
    kind."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        if _PT2_WEIGHTS in names:
            return _of_pt2(archive, names)
        if "constants.pkl" in names and "data.pkl" in names:
            module = _Modules(archive, names).load()
            return _plain(module)
    return None


def _of_pt2(archive: zipfile.ZipFile, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights of torch.export.save: bytes, and in JSON the type, sizes and strides of each."""
    tensors = {}
    for key, about in json.loads(archive.read(names[_PT2_WEIGHTS]))["config"].items():
        meta = about["tensor_meta"]
        if about["use_pickle"] or meta["dtype"] not in _DTYPES:
            raise ValueError(f"{key} is no plain tensor")
        flat = _flat(archive.read(names[f"data/weights/{about['path_name']}"]), _DTYPES[meta["dtype"]])
        shape, strides = ([side["as_int"] for side in meta[part]] for part in ("sizes", "strides"))
        tensors[key] = torch.as_strided(flat, shape, strides, meta["storage_offset"]["as_int"]).clone()
    return tensors


class _Module:
    """A module of TorchScript: its attributes, without its code."""


class _Modules(pickle.Unpickler):
    """The modules and tensors of a TorchScript file. Any class but these is refused."""

    def __init__(self, archive: zipfile.ZipFile, names: Mapping[str, str]) -> None:
        super().__init__(io.BytesIO(archive.read(names["data.pkl"])))
        self.archive, self.names = archive, names

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _strided
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        raise pickle.UnpicklingError(f"Unsupported global {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, *_ = pid
        return _flat(self.archive.read(self.names[f"data/{key}"]), dtype)


def _strided(flat: Tensor, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> Tensor:
    return torch.as_strided(flat, shape, strides, offset).clone()


def _flat(content: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)


def _plain(module: Any) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in vars(module).items():
        if isinstance(value, _Module):
            nested[key] = _plain(value)
        elif isinstance(value, Tensor):
            nested[key] = value
    return nested

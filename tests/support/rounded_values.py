"""Values that a dtype represents exactly, so that only computation can round."""

import numpy as np
import torch


def rounded(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    return torch.from_numpy(values).to(dtype).float().numpy()


def samples(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and output gradients that `dtype` represents exactly."""
    random = np.random.RandomState(3)
    return rounded(random.normal(3, 2, size=shape), dtype), rounded(random.normal(size=shape), dtype)

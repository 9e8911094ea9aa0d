"""Launches `nm_mask.cpp`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from trisparse.kernels.cpu.launch import DTYPES, function_of, structure

_How = structure("Groups", (), ("rows", "cols", "n", "m", "magnitude", "is_half"))


def nm_mask(scores: Tensor, n: int, m: int, dim: int, magnitude: bool) -> Tensor | None:
    """As `trisparse.sparse_ops.nm_mask` has it; None where there is no kernel for it."""
    function = function_of("nm_mask")
    if function is None or dim != 1 or scores.dtype not in DTYPES or not scores.is_cpu:
        return None
    scores = scores.resolve_neg().contiguous()
    mask = torch.empty(scores.shape, dtype=torch.bool, device="cpu")
    how = _How(*scores.shape, n, m, magnitude, scores.dtype == torch.bfloat16)
    function(ctypes.addressof(how), scores.data_ptr(), mask.data_ptr(), 0, torch.get_num_threads())
    return mask

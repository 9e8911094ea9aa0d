"""Launches `apply_masks.cpp`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from trisparse.kernels.cpu.launch import function_of, structure

_Layer = structure("Masked", ("weight", "mask"), ("down", "across", "n", "m", "stride", "bytes"))


def apply_masks(weights: Sequence[Tensor], masks: Sequence[Tensor], blocks: Sequence[tuple[int, int]]) -> list[int]:
    """As `trisparse.sparse_ops.apply_masks` has it; returns the layers that there is no kernel for, untouched."""
    function = function_of("apply_masks")
    if function is None:
        return list(range(len(weights)))
    rows, others = [], []
    for i, (weight, mask, (n, m)) in enumerate(zip(weights, masks, blocks, strict=True)):
        if weight.dim() != 2 or (weight.stride(1) != 1 and weight.shape[1] != 1) or weight.element_size() == 1:
            others.append(i)
        elif weight.numel():
            size = weight.element_size()
            rows.append((weight.data_ptr(), mask.data_ptr(), *mask.shape, n, m, weight.stride(0), size))
    if rows:
        layers = (_Layer * len(rows))(*rows)
        function(ctypes.addressof(layers), None, None, len(rows), torch.get_num_threads())
    return others

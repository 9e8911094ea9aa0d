"""Launches `masked_adamw.cpp`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trisparse.kernels.cpu.launch import function_of
from trisparse.kernels.cpu.score_units import Layer, how_to_score, is_rowwise


class _Stepped(ctypes.Structure):
    _fields_ = (("layer", Layer), ("first", ctypes.c_void_p), ("second", ctypes.c_void_p), ("mask", ctypes.c_void_p),
                ("rates", ctypes.c_double * 6))  # fmt: skip


def masked_adamw(
    weights: Sequence[Tensor], grads: Sequence[Tensor | None], firsts: Sequence[Tensor], seconds: Sequence[Tensor],
    rates: Tensor, scores: Sequence[Tensor], masks: Sequence[Tensor], blocks: Sequence[tuple[int, int]], seen: Tensor,
    criterion: str, reduce: str, decay: float, grad_scale: float,
) -> list[int]:  # fmt: skip
    """As `trisparse.sparse_ops.masked_adamw` has it; returns the layers that there is no kernel for, untouched."""
    function = function_of("masked_adamw")
    if function is None:
        return list(range(len(weights)))
    rows: list[Any] = []
    numbers: list[int] = []
    others: list[int] = []
    for i, (weight, grad, (n, m), row) in enumerate(zip(weights, grads, blocks, rates.tolist(), strict=True)):
        if grad is None or not _is_alike(weight, grad):
            others.append(i)
            continue
        if not weight.numel():
            continue
        score = scores[i].data_ptr() if scores else 0
        mask = masks[i].data_ptr() if masks else 0
        grid = weight.shape[0] // n, weight.shape[1] // m
        layer = Layer(weight.data_ptr(), grad.data_ptr(), score, *grid, n, m, weight.stride(0), False)
        rows.append((layer, firsts[i].data_ptr(), seconds[i].data_ptr(), mask, tuple(row)))
        numbers.append(i)
    if rows:
        how = how_to_score(criterion, reduce, decay, grad_scale)
        updated = torch.zeros(len(rows), dtype=torch.bool, device="cpu")
        layers = (_Stepped * len(rows))(*rows)
        threads = torch.get_num_threads()
        function(ctypes.addressof(layers), ctypes.addressof(how), updated.data_ptr(), len(rows), threads)
        seen[torch.tensor(numbers, device="cpu")] |= updated
    return others


def _is_alike(weight: Tensor, grad: Tensor) -> bool:
    lies_alike = grad.dtype == weight.dtype == torch.float32 and grad.stride() == weight.stride() and grad.is_cpu
    return lies_alike and is_rowwise(weight)

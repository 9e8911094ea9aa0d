"""Launches `score_units.cpp`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from trisparse.kernels.cpu.launch import DTYPES, function_of, structure

_CRITERIA = {"magnitude": 0, "gradient": 1, "snip": 2, "snip_momentum": 2}
_REDUCTIONS = {"mean": 0, "sum": 1, "max": 2}
Layer = structure("Layer", ("weight", "grad", "score"), ("down", "across", "n", "m", "stride", "is_half"))


class How(ctypes.Structure):
    _fields_ = (("criterion", ctypes.c_int64), ("reduction", ctypes.c_int64), ("decay", ctypes.c_double),
                ("divisor", ctypes.c_double))  # fmt: skip


def score_units(
    scores: Sequence[Tensor], weights: Sequence[Tensor], grads: Sequence[Tensor | None],
    blocks: Sequence[tuple[int, int]], seen: Tensor, criterion: str, reduce: str, decay: float, grad_scale: float,
) -> list[int]:  # fmt: skip
    """As `trisparse.sparse_ops.score_units` has it; returns the layers that there is no kernel for, untouched."""
    function = function_of("score_units")
    if function is None:
        return list(range(len(scores)))
    needs_grad = criterion != "magnitude"
    rows, numbers, others = [], [], []
    for i, (score, weight, grad, (n, m)) in enumerate(zip(scores, weights, grads, blocks, strict=True)):
        if not weight.numel() or (grad is None and needs_grad):
            continue
        grad = grad if needs_grad else None
        lies_alike = grad is None or (grad.dtype == weight.dtype and grad.stride() == weight.stride() and grad.is_cpu)
        if not is_rowwise(weight) or not lies_alike:
            others.append(i)
            continue
        address = 0 if grad is None else grad.data_ptr()
        half = weight.dtype == torch.bfloat16
        rows.append((weight.data_ptr(), address, score.data_ptr(), *score.shape, n, m, weight.stride(0), half))
        numbers.append(i)
    if rows:
        how = how_to_score(criterion, reduce, decay, grad_scale)
        updated = torch.zeros(len(rows), dtype=torch.bool, device="cpu")
        layers = (Layer * len(rows))(*rows)
        threads = torch.get_num_threads()
        function(ctypes.addressof(layers), ctypes.addressof(how), updated.data_ptr(), len(rows), threads)
        seen[torch.tensor(numbers, device="cpu")] |= updated
    return others


def how_to_score(criterion: str, reduce: str, decay: float, grad_scale: float) -> How:
    """What a kernel that scores needs to know besides the layers."""
    decay, divisor = decay if criterion == "snip_momentum" else 0.0, grad_scale if criterion != "magnitude" else 1.0
    return How(_CRITERIA[criterion], _REDUCTIONS[reduce], decay, divisor)


def is_rowwise(weight: Tensor) -> bool:
    """Whether a unit view is a matrix in rows, of a dtype that kernels read."""
    is_matrix = weight.dim() == 2 and (weight.stride(1) == 1 or weight.shape[1] == 1)
    return is_matrix and weight.dtype in DTYPES and weight.is_cpu and not weight.is_neg()

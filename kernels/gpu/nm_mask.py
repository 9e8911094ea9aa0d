"""N:M masks: keep the N highest of every M consecutive values, in a tie the lower index.

Keys are unique: the value's order above the bits of its index counted from the end. So one sort of a group
gives the threshold, and its result does not depend on the sort. 16-bit values fit keys of 32 bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trisparse.kernels.gpu.access import warps

TILE = 2048  # values a program, counting those that pad M to a power of two
_THREADS = 128


@triton.constexpr_function
def inf_bits(dtype: tl.dtype) -> int:
    return {"fp16": 0x7C00, "bf16": 0x7F80, "fp32": 0x7F800000}[dtype.name]


@triton.jit
def order(values, MAGNITUDE: tl.constexpr):
    """Integers that order like the values or like their magnitudes, as wide as the values and with a sign."""
    WIDTH: tl.constexpr = values.dtype.primitive_bitwidth
    LARGEST: tl.constexpr = (1 << (WIDTH - 1)) - 1
    bits = values.to(tl.int16 if WIDTH == 16 else tl.int32, bitcast=True).to(tl.int32)
    size = bits & LARGEST
    order = size if MAGNITUDE else tl.where(bits < 0, -size, size)
    return tl.where(size > inf_bits(values.dtype), LARGEST, order)  # NaN is above inf


@triton.jit
def mask_groups(
    values_ptr, mask_ptr, numel,
    N: tl.constexpr, M: tl.constexpr, WIDTH: tl.constexpr, GROUPS: tl.constexpr, MAGNITUDE: tl.constexpr,
):  # fmt: skip
    """`GROUPS` groups of M consecutive values, each padded to `WIDTH`."""
    first = tl.program_id(0).to(tl.int64) * GROUPS
    j = tl.arange(0, WIDTH)[None, :]
    if WIDTH == M:  # one line of memory, so that a thread reads more than a group at once
        flat = first * M + tl.arange(0, GROUPS * M)
        values = tl.reshape(tl.load(values_ptr + flat, mask=flat < numel, other=0.0), (GROUPS, WIDTH))
    else:
        offs = (first + tl.arange(0, GROUPS)[:, None]) * M + j  # [GROUPS, WIDTH]
        inside = (offs < numel) & (j < M)
        values = tl.load(values_ptr + offs, mask=inside, other=0.0)
    BITS: tl.constexpr = values.dtype.primitive_bitwidth
    LOWEST: tl.constexpr = -(1 << (BITS + 5))
    keys = (order(values, MAGNITUDE).to(tl.int32 if BITS == 16 else tl.int64) << 5) + (31 - j)
    if WIDTH != M:
        keys = tl.where(j < M, keys, LOWEST)
    best = tl.sort(keys, dim=1, descending=True)
    threshold = tl.max(tl.where(j == N - 1, best, LOWEST), 1)
    keep = (keys >= threshold[:, None]).to(tl.int8)
    if WIDTH == M:
        tl.store(mask_ptr + flat, tl.reshape(keep, (GROUPS * M,)), mask=flat < numel)
    else:
        tl.store(mask_ptr + offs, keep, mask=inside)


def nm_mask(scores: Tensor, n: int, m: int, dim: int = 1, magnitude: bool = False) -> Tensor:
    """bool mask shaped like `scores`; arguments as in `trisparse.sparse_ops.nm_mask`."""
    if dim == 0:  # a sort inside a thread and two copies beat a sort across threads
        return nm_mask(scores.t(), n, m, 1, magnitude).t().contiguous()
    scores = scores.contiguous()
    if scores.dtype == torch.float64:
        scores = scores.float()
    mask = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    if scores.numel():
        width = triton.next_power_of_2(m)
        groups = TILE // width
        mask_groups[(triton.cdiv(scores.numel() // m, groups),)](
            scores, mask.view(torch.int8), scores.numel(),
            N=n, M=m, WIDTH=width, GROUPS=groups, MAGNITUDE=magnitude, num_warps=warps(_THREADS),
        )  # fmt: skip
    return mask

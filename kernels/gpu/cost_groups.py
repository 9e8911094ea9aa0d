"""N:M groups of all layers in one launch: masks of the N best of every M, and sums of the others.

What is best is found as `nm_mask` does it; sums go over the places of a group in their order, from a second read of
what the first has brought into the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from trisparse.kernels.gpu.access import warps
from trisparse.kernels.gpu.nm_mask import order
from trisparse.kernels.gpu.nm_mask_2d import split_quads
from trisparse.kernels.plan import GROUPS_CHUNK, plan_groups

_THREADS = 128


@triton.jit
def open_groups(pointers, lengths, chunks, CHUNK: tl.constexpr):
    """This program's row of addresses, its first group, and how many there are from there on."""
    item = chunks + tl.program_id(0).to(tl.int64) * 3
    layer, first = tl.load(item), tl.load(item + 1).to(tl.int64) * CHUNK
    return pointers + layer * 4, first, tl.minimum(tl.load(lengths + layer) - first, CHUNK).to(tl.int32)


@triton.jit
def rank_groups(pointers, lengths, chunks, N: tl.constexpr, M: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """`CHUNK` groups of M consecutive scores, each padded to `WIDTH`."""
    addresses, first, count = open_groups(pointers, lengths, chunks, CHUNK)
    ranked = tl.load(addresses).to(tl.pointer_type(tl.float32)) + first * M
    scores = tl.load(addresses + 1).to(tl.pointer_type(tl.float32)) + first * M
    best = tl.load(addresses + 2).to(tl.pointer_type(tl.int8)) + first * M
    costs = tl.load(addresses + 3).to(tl.pointer_type(tl.float32)) + first
    group, j = tl.arange(0, CHUNK), tl.arange(0, WIDTH)[None, :]
    inside = group < count
    offs = group[:, None] * M + j  # [CHUNK, WIDTH]
    there = inside[:, None] & (j < M)
    LOWEST: tl.constexpr = -(1 << 37)
    keys = (order(tl.load(ranked + offs, mask=there, other=0.0), False).to(tl.int64) << 5) + (31 - j)
    keys = tl.where(j < M, keys, LOWEST)
    threshold = tl.max(tl.where(j == N - 1, tl.sort(keys, dim=1, descending=True), LOWEST), 1)
    tl.store(best + offs, (keys >= threshold[:, None]).to(tl.int8), mask=there)
    cost = tl.zeros((CHUNK,), tl.float32)
    for i in range(M):  # unrolled, 32 places would not fit in registers
        key = (order(tl.load(ranked + group * M + i, mask=inside, other=0.0), False).to(tl.int64) << 5) + (31 - i)
        score = tl.load(scores + group * M + i, mask=inside, other=0.0)
        cost += tl.where(key >= threshold, 0.0, score)
    tl.store(costs + group, cost, mask=inside)


@triton.jit
def rank_quads(pointers, lengths, chunks, N: tl.constexpr, CHUNK: tl.constexpr, IS_APART: tl.constexpr):
    """The same of groups of four, all at 16 bytes: each is in one thread, and its places are compared with each other.

    IS_APART: whether what is ranked is not the scores.
    """
    addresses, first, count = open_groups(pointers, lengths, chunks, CHUNK)
    ranked = tl.multiple_of(tl.load(addresses).to(tl.pointer_type(tl.float32)), 16) + first * 4
    scores = tl.multiple_of(tl.load(addresses + 1).to(tl.pointer_type(tl.float32)), 16) + first * 4
    best = tl.multiple_of(tl.load(addresses + 2).to(tl.pointer_type(tl.int8)), 16) + first * 4
    costs = tl.multiple_of(tl.load(addresses + 3).to(tl.pointer_type(tl.float32)), 16) + first
    offs = tl.arange(0, CHUNK * 4)
    inside = offs < count * 4
    values = tl.load(ranked + offs, mask=inside, other=0.0)
    k0, k1, k2, k3 = split_quads(tl.reshape(order(values, False), (CHUNK, 4)), CHUNK, 1)
    b01, b02, b03 = (k0 >= k1).to(tl.int32), (k0 >= k2).to(tl.int32), (k0 >= k3).to(tl.int32)
    b12, b13, b23 = (k1 >= k2).to(tl.int32), (k1 >= k3).to(tl.int32), (k2 >= k3).to(tl.int32)
    # how many of the others are better
    t0, t1 = 3 - b01 - b02 - b03 < N, 2 + b01 - b12 - b13 < N
    t2, t3 = 1 + b02 + b12 - b23 < N, b03 + b13 + b23 < N
    keep = tl.join(tl.join(t0.to(tl.int8), t2.to(tl.int8)), tl.join(t1.to(tl.int8), t3.to(tl.int8)))
    tl.store(best + offs, tl.reshape(keep, (CHUNK * 4,)), mask=inside)
    if IS_APART:
        values = tl.load(scores + offs, mask=inside, other=0.0)
    s0, s1, s2, s3 = split_quads(tl.reshape(values, (CHUNK, 4)), CHUNK, 1)
    cost = tl.where(t0, 0.0, s0) + tl.where(t1, 0.0, s1)
    cost = cost + tl.where(t2, 0.0, s2) + tl.where(t3, 0.0, s3)
    group = tl.arange(0, CHUNK)
    tl.store(costs + group, tl.reshape(cost, (CHUNK,)), mask=group < count)


def cost_groups(
    ranked: Sequence[Tensor], scores: Sequence[Tensor], best: Sequence[Tensor], costs: Sequence[Tensor], n: int, m: int,
    plan: Sequence[Tensor] = (),
) -> None:  # fmt: skip
    """Arguments as in `trisparse.sparse_ops.cost_groups`, but for `plan`: of `plan_groups` over the four lists."""
    lengths = [cost.numel() for cost in costs]
    is_aligned, *tables = plan or plan_groups((ranked, scores, best, costs), lengths, m)
    grid, width = (len(tables[2]),), triton.next_power_of_2(m)
    if m == 4 and is_aligned and grid[0]:
        constants = {"N": n, "CHUNK": GROUPS_CHUNK // width, "IS_APART": ranked is not scores}
        rank_quads[grid](*tables, **constants, num_warps=warps(_THREADS))
    elif grid[0]:
        constants = {"N": n, "M": m, "WIDTH": width, "CHUNK": GROUPS_CHUNK // width}
        rank_groups[grid](*tables, **constants, num_warps=warps(_THREADS))

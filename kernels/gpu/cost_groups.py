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
from trisparse.kernels.plan import GROUPS_CHUNK, plan_groups

_THREADS = 128


@triton.jit
def open_groups(pointers, lengths, chunks, CHUNK: tl.constexpr):
    """This program's row of addresses, its groups and which of them are there."""
    item = chunks + tl.program_id(0).to(tl.int64) * 3
    layer, chunk = tl.load(item), tl.load(item + 1)
    group = chunk.to(tl.int64) * CHUNK + tl.arange(0, CHUNK)
    return pointers + layer * 4, group, group < tl.load(lengths + layer)


@triton.jit
def rank_groups(pointers, lengths, chunks, N: tl.constexpr, M: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """`CHUNK` groups of M consecutive scores, each padded to `WIDTH`."""
    addresses, group, inside = open_groups(pointers, lengths, chunks, CHUNK)
    ranked = tl.load(addresses).to(tl.pointer_type(tl.float32))
    scores = tl.load(addresses + 1).to(tl.pointer_type(tl.float32))
    best = tl.load(addresses + 2).to(tl.pointer_type(tl.int8))
    costs = tl.load(addresses + 3).to(tl.pointer_type(tl.float32))
    j = tl.arange(0, WIDTH)[None, :]
    offs = group[:, None] * M + j  # [CHUNK, WIDTH]
    there = inside[:, None] & (j < M)
    LOWEST: tl.constexpr = -(1 << 37)
    keys = (order(tl.load(ranked + offs, mask=there, other=0.0), False).to(tl.int64) << 5) + (31 - j)
    keys = tl.where(j < M, keys, LOWEST)
    threshold = tl.max(tl.where(j == N - 1, tl.sort(keys, dim=1, descending=True), LOWEST), 1)
    tl.store(best + offs, (keys >= threshold[:, None]).to(tl.int8), mask=there)
    cost = tl.zeros((CHUNK,), tl.float32)
    for i in tl.static_range(M):
        key = (order(tl.load(ranked + group * M + i, mask=inside, other=0.0), False).to(tl.int64) << 5) + (31 - i)
        score = tl.load(scores + group * M + i, mask=inside, other=0.0)
        cost += tl.where(key >= threshold, 0.0, score)
    tl.store(costs + group, cost, mask=inside)


def cost_groups(
    ranked: Sequence[Tensor], scores: Sequence[Tensor], best: Sequence[Tensor], costs: Sequence[Tensor], n: int, m: int,
    plan: Sequence[Tensor] = (),
) -> None:  # fmt: skip
    """Arguments as in `trisparse.sparse_ops.cost_groups`, but for `plan`: of `plan_groups` over the four lists."""
    lengths = [cost.numel() for cost in costs]
    tables = plan or plan_groups((ranked, scores, best, costs), lengths, m)
    if len(tables[2]):
        rank_groups[(len(tables[2]),)](
            *tables, N=n, M=m, WIDTH=triton.next_power_of_2(m), CHUNK=GROUPS_CHUNK // triton.next_power_of_2(m),
            num_warps=warps(_THREADS),
        )  # fmt: skip

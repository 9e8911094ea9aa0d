"""K <- K and (B or not gone), the groups that are gone being dense before and not after; all layers in one launch."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from trisparse.kernels.gpu.access import warps
from trisparse.kernels.gpu.cost_groups import open_groups
from trisparse.kernels.plan import GROUPS_CHUNK, plan_groups

_THREADS = 128


@triton.jit
def thin_kept(pointers, lengths, chunks, M: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """`CHUNK` groups of M consecutive weights."""
    addresses, first, count = open_groups(pointers, lengths, chunks, CHUNK)
    kept = tl.load(addresses).to(tl.pointer_type(tl.int8)) + first * M
    best = tl.load(addresses + 1).to(tl.pointer_type(tl.int8)) + first * M
    before = tl.load(addresses + 2).to(tl.pointer_type(tl.int8)) + first
    after = tl.load(addresses + 3).to(tl.pointer_type(tl.int8)) + first
    group = tl.arange(0, CHUNK)
    was = tl.load(before + group, mask=group < count, other=0)
    is_gone = (was != 0) & (tl.load(after + group, mask=group < count, other=0) == 0)
    j = tl.arange(0, WIDTH)[None, :]
    offs = group[:, None] * M + j  # [CHUNK, WIDTH]
    goes = is_gone[:, None] & (j < M)
    goes = goes & (tl.load(best + offs, mask=goes, other=1) == 0)
    tl.store(kept + offs, tl.zeros((CHUNK, WIDTH), tl.int8), mask=goes)


def thin_groups(
    kept: Sequence[Tensor], best: Sequence[Tensor], before: Sequence[Tensor], after: Sequence[Tensor], m: int,
    plan: Sequence[Tensor] = (),
) -> None:  # fmt: skip
    """Arguments as in `trisparse.sparse_ops.thin_groups`, but for `plan`: of `plan_groups` over the four lists."""
    _, *tables = plan or plan_groups((kept, best, before, after), [was.numel() for was in before], m)
    if len(tables[2]):
        width = triton.next_power_of_2(m)
        thin_kept[(len(tables[2]),)](*tables, M=m, WIDTH=width, CHUNK=GROUPS_CHUNK // width, num_warps=warps(_THREADS))

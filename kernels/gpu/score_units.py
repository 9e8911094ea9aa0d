"""Score units: S <- decay * S + R(c), with c = |W|, |G| or |W * G| and R the mean, sum or maximum over a unit.

A layer with a gradient that is not finite keeps its scores. So a first launch reads the gradients and flags
such layers; the second reads weights, gradients and scores once: for 4x1 on bf16 2 + 6 bytes a weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from trisparse.kernels.gpu.access import (
    TYPES,
    line_offsets,
    open_line,
    open_tile,
    tall_offsets,
    tile_mask,
    tile_offsets,
    unit_offsets,
    warps,
)
from trisparse.kernels.plan import Launch, launches, plan_units
from trisparse.kernels.tables import LINES, LINES_T, TILES, TILES_T

INF_BITS = tl.constexpr(0x7F800000)
CRITERIA = {"magnitude": 0, "gradient": 1, "snip": 2, "snip_momentum": 2}
REDUCTIONS = {"mean": 0, "sum": 1, "max": 2}
MAGNITUDE, GRADIENT = tl.constexpr(CRITERIA["magnitude"]), tl.constexpr(CRITERIA["gradient"])
MEAN, MAX = tl.constexpr(REDUCTIONS["mean"]), tl.constexpr(REDUCTIONS["max"])
_THREADS = 256


@triton.jit
def _cost(weight, grad, offs, mask, CRITERION: tl.constexpr):
    """c of the weights at `offs`, fp32; zero where they lie outside."""
    if CRITERION == GRADIENT:
        return tl.abs(tl.load(grad + offs, mask=mask, other=0.0).to(tl.float32))
    w = tl.load(weight + offs, mask=mask, other=0.0).to(tl.float32)
    if CRITERION == MAGNITUDE:
        return tl.abs(w)
    return tl.abs(w * tl.load(grad + offs, mask=mask, other=0.0).to(tl.float32))


@triton.jit
def join_costs(a, b, REDUCE: tl.constexpr):
    """Sum or maximum; as costs are not negative, integers order them, with NaN the highest."""
    if REDUCE == MAX:
        return tl.maximum(a.to(tl.int32, bitcast=True), b.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)
    return a + b


@triton.jit
def reduce_costs(costs, axis: tl.constexpr, REDUCE: tl.constexpr):
    if REDUCE == MAX:
        return tl.max(costs.to(tl.int32, bitcast=True), axis).to(tl.float32, bitcast=True)
    return tl.sum(costs, axis)


@triton.jit
def write_scores(score, offs, mask, total, factor, decay, EMA: tl.constexpr):
    """S <- decay * S + total * factor."""
    cost = total * factor
    if EMA:
        cost += decay * tl.load(score + offs, mask=mask, other=0.0)
    tl.store(score + offs, cost, mask=mask)


@triton.jit
def score_tiles(
    pointers, shapes, chunks, bad, seen, decay, unscale,
    W: tl.constexpr, G: tl.constexpr, CRITERION: tl.constexpr, REDUCE: tl.constexpr, EMA: tl.constexpr,
    FIND_BAD: tl.constexpr, OPERANDS: tl.constexpr, TRANSPOSED: tl.constexpr,
    N: tl.constexpr, M: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr,
):  # fmt: skip
    """A tile of `DOWN x ACROSS` units of N x M weights; FIND_BAD: only flag layers with a cost that is not finite."""
    entry, layer, down, across, cols, stride, r0, c0 = open_tile(shapes, chunks, M)
    addresses = pointers + entry * OPERANDS
    weight = tl.multiple_of(tl.load(addresses).to(tl.pointer_type(W)), 16)
    grad = tl.multiple_of(tl.load(addresses + 1).to(tl.pointer_type(G)), 16)
    score = tl.multiple_of(tl.load(addresses + 2).to(tl.pointer_type(tl.float32)), 16)
    is_bad = 0  # while flags are being set, threads of one program must not disagree on them
    if not FIND_BAD:
        is_bad = tl.load(bad + layer)
    if is_bad == 0:
        inside = tile_mask(down, cols, r0, c0, M, DOWN, ACROSS)
        if N <= 8:  # row by row: loads are strided, and nothing is shuffled between threads
            total = tl.zeros((DOWN, ACROSS * M), tl.float32)
            for i in tl.static_range(N):
                offs = tile_offsets(stride, r0, c0, i, N, M, DOWN, ACROSS)
                total = join_costs(total, _cost(weight, grad, offs, inside, CRITERION), REDUCE)
        else:
            offs = tall_offsets(stride, r0, c0, N, M, ACROSS)
            total = reduce_costs(_cost(weight, grad, offs, inside, CRITERION), 0, REDUCE)
        if FIND_BAD:
            if tl.max(total.to(tl.int32, bitcast=True)) >= INF_BITS:
                tl.store(bad + layer, 1)
        else:
            if M > 1:
                total = reduce_costs(tl.reshape(total, (DOWN, ACROSS, M)), 2, REDUCE)
            elif N > 8:
                total = total[None, :]
            offs = unit_offsets(down, across, r0, c0, TRANSPOSED, DOWN, ACROSS)
            mask = tile_mask(down, across, r0, c0, 1, DOWN, ACROSS)
            factor = unscale * (1 / (N * M) if REDUCE == MEAN else 1.0)
            write_scores(score, offs, mask, total, factor, decay, EMA)
            tl.store(seen + layer, 1)


@triton.jit
def score_lines(
    pointers, shapes, chunks, bad, seen, decay, unscale,
    W: tl.constexpr, G: tl.constexpr, CRITERION: tl.constexpr, REDUCE: tl.constexpr, EMA: tl.constexpr,
    FIND_BAD: tl.constexpr, OPERANDS: tl.constexpr, IS_LINES: tl.constexpr, IS_LINES_T: tl.constexpr,
    UNITS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """`UNITS` whole units, `WIDTH` of their weights at a time; FIND_BAD as above."""
    entry, layer, shape, units, size, u0 = open_line(shapes, chunks, IS_LINES, IS_LINES_T, UNITS)
    addresses = pointers + entry * OPERANDS
    weight = tl.load(addresses).to(tl.pointer_type(W))
    grad = tl.load(addresses + 1).to(tl.pointer_type(G))
    score = tl.load(addresses + 2).to(tl.pointer_type(tl.float32))
    if IS_LINES or IS_LINES_T:
        weight, grad = tl.multiple_of(weight, 16), tl.multiple_of(grad, 16)
    is_bad = 0
    if not FIND_BAD:
        is_bad = tl.load(bad + layer)
    if is_bad == 0:
        u = u0 + tl.arange(0, UNITS)
        total = tl.zeros((UNITS, WIDTH), tl.float32)
        for start in range(0, size, WIDTH):
            e = start + tl.arange(0, WIDTH)
            offs = line_offsets(shape, u, e, IS_LINES, IS_LINES_T)
            inside = (u < units)[:, None] & (e < size)[None, :]
            total = join_costs(total, _cost(weight, grad, offs, inside, CRITERION), REDUCE)
        if FIND_BAD:
            if tl.max(total.to(tl.int32, bitcast=True)) >= INF_BITS:
                tl.store(bad + layer, 1)
        else:
            total = reduce_costs(total, 1, REDUCE)
            factor = tl.div_rn(unscale, size.to(tl.float32)) if REDUCE == MEAN else unscale
            write_scores(score, u.to(tl.int64), u < units, total, factor, decay, EMA)
            tl.store(seen + layer, 1)


def score_units(
    scores: Sequence[Tensor],
    weights: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    blocks: Sequence[tuple[int, int]],
    seen: Tensor,
    criterion: str,
    reduce: str,
    decay: float,
    grad_scale: float,
    plan: Sequence[Tensor] = (),
) -> None:
    """Two launches for all layers of one layout and dtype.

    Arguments as in `trisparse.sparse_ops.score_units`, but for `plan`: of `plan_units` over weights, then grads
    (for `magnitude` the weights again), then scores.
    """
    beside = [weights if criterion == "magnitude" else grads, scores]
    todo = launches(plan or plan_units(weights, beside, blocks))
    bad = torch.zeros_like(seen, dtype=torch.int32)
    flags = bad, seen.view(torch.int8)
    update = {
        "CRITERION": CRITERIA[criterion],
        "REDUCE": REDUCTIONS[reduce],
        "EMA": criterion == "snip_momentum" and decay != 0,
    }
    if criterion == "magnitude":
        grad_scale = 1.0
    else:
        for launch in todo:
            find_bad(launch, flags)
    for launch in todo:
        _launch(launch, flags, decay, 1 / grad_scale, **update, FIND_BAD=False)


def find_bad(launch: Launch, flags: tuple[Tensor, Tensor]) -> None:
    """Flag the launch's layers with a gradient that is not finite; operands begin with weights, grads and scores."""
    what = {"CRITERION": CRITERIA["gradient"], "REDUCE": REDUCTIONS["max"], "EMA": False}
    _launch(launch, flags, 0.0, 1.0, **what, FIND_BAD=True)


def _launch(launch: Launch, flags: tuple[Tensor, Tensor], decay: float, unscale: float, **constants: object) -> None:
    grid = (len(launch.chunks),)
    arguments = launch.pointers, launch.shapes, launch.chunks, *flags, decay, unscale
    constants |= {"W": TYPES[launch.dtypes[0]], "G": TYPES[launch.dtypes[1]], "num_warps": warps(_THREADS)}
    constants["OPERANDS"] = launch.pointers.shape[1]
    layout, (first, second) = launch.layout, launch.tile
    if layout in (TILES, TILES_T):
        n, m = launch.block
        constants |= {"TRANSPOSED": layout == TILES_T, "N": n, "M": m, "DOWN": first, "ACROSS": second}
        score_tiles[grid](*arguments, **constants)
    else:
        constants |= {"IS_LINES": layout == LINES, "IS_LINES_T": layout == LINES_T, "UNITS": first, "WIDTH": second}
        score_lines[grid](*arguments, **constants)

"""AdamW, score and mask in one pass over weights, gradients and moments.

With c and S as in `score_units` and k the unit's mask, for every weight of a unit, in fp32:

    S <- decay * S + R(c), with W before the step
    m <- m + (g - m) * (1 - beta1)
    v <- beta2 * v + (1 - beta2) * g^2
    W <- k * (W * (1 - lr * weight_decay) - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps))

Source: decoupled weight decay, arXiv 1711.05101, in the order of `torch.optim.AdamW`.
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
from trisparse.kernels.gpu.score_units import (
    CRITERIA,
    GRADIENT,
    MEAN,
    REDUCTIONS,
    find_bad,
    join_costs,
    reduce_costs,
    write_scores,
)
from trisparse.kernels.plan import Launch, launches, plan_units
from trisparse.kernels.tables import LINES, LINES_T, STRIDED, TILES, TILES_T

_OPERANDS = tl.constexpr(6)  # weights, grads, scores, masks, first and second moments


@triton.jit
def _step(weight, grad, first, second, rates, offs, mask, keep, MASKED: tl.constexpr, CRITERION: tl.constexpr):
    """Step the weights at `offs`; returns their costs before it.

    `rates`: 1 - lr * weight_decay, 1 - beta1, beta2, step size, root of the second bias correction, eps.
    """
    w = tl.load(weight + offs, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(grad + offs, mask=mask, other=0.0).to(tl.float32)
    m = tl.load(first + offs, mask=mask, other=0.0).to(tl.float32)
    v = tl.load(second + offs, mask=mask, other=0.0).to(tl.float32)
    m += (g - m) * tl.load(rates + 1).to(tl.float32)
    beta2 = tl.load(rates + 2)
    v = v * beta2.to(tl.float32) + g * g * (1 - beta2).to(tl.float32)
    root = tl.sqrt(v) / tl.load(rates + 4).to(tl.float32) + tl.load(rates + 5).to(tl.float32)
    new = w * tl.load(rates).to(tl.float32) - tl.load(rates + 3).to(tl.float32) * m / root
    if MASKED:
        new = tl.where(keep != 0, new, 0.0)
    tl.store(weight + offs, new.to(weight.dtype.element_ty), mask=mask)
    tl.store(first + offs, m.to(first.dtype.element_ty), mask=mask)
    tl.store(second + offs, v.to(second.dtype.element_ty), mask=mask)
    return tl.abs(g) if CRITERION == GRADIENT else tl.abs(w * g)


@triton.jit
def step_tiles(
    pointers, shapes, chunks, bad, seen, all_rates, decay, unscale,
    W: tl.constexpr, G: tl.constexpr, CRITERION: tl.constexpr, REDUCE: tl.constexpr, EMA: tl.constexpr,
    SCORED: tl.constexpr, MASKED: tl.constexpr, TRANSPOSED: tl.constexpr,
    N: tl.constexpr, M: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr,
):  # fmt: skip
    """A tile of `DOWN x ACROSS` units of N x M weights."""
    entry, layer, down, across, cols, stride, r0, c0 = open_tile(shapes, chunks, M)
    addresses = pointers + entry * _OPERANDS
    weight = tl.multiple_of(tl.load(addresses).to(tl.pointer_type(W)), 16)
    grad = tl.multiple_of(tl.load(addresses + 1).to(tl.pointer_type(G)), 16)
    score = tl.multiple_of(tl.load(addresses + 2).to(tl.pointer_type(tl.float32)), 16)
    mask = tl.multiple_of(tl.load(addresses + 3).to(tl.pointer_type(tl.int8)), 16)
    first = tl.multiple_of(tl.load(addresses + 4).to(tl.pointer_type(W)), 16)
    second = tl.multiple_of(tl.load(addresses + 5).to(tl.pointer_type(W)), 16)
    rates = all_rates + layer * 6
    inside = tile_mask(down, cols, r0, c0, M, DOWN, ACROSS)
    units = unit_offsets(down, across, r0, c0, TRANSPOSED, DOWN, ACROSS)
    in_grid = tile_mask(down, across, r0, c0, 1, DOWN, ACROSS)
    keep = tl.full((DOWN, ACROSS), 1, tl.int8)
    if MASKED:
        keep = tl.load(mask + units, mask=in_grid, other=0)
    if M > 1:
        keep = tl.reshape(tl.broadcast_to(keep[:, :, None], (DOWN, ACROSS, M)), (DOWN, ACROSS * M))
    if N <= 8:
        total = tl.zeros((DOWN, ACROSS * M), tl.float32)
        for i in tl.static_range(N):
            offs = tile_offsets(stride, r0, c0, i, N, M, DOWN, ACROSS)
            cost = _step(weight, grad, first, second, rates, offs, inside, keep, MASKED, CRITERION)
            total = join_costs(total, cost, REDUCE)
    else:
        offs = tall_offsets(stride, r0, c0, N, M, ACROSS)
        cost = _step(weight, grad, first, second, rates, offs, inside, keep, MASKED, CRITERION)
        total = reduce_costs(tl.where(inside, cost, 0.0), 0, REDUCE)
    if SCORED:
        if M > 1:
            total = reduce_costs(tl.reshape(total, (DOWN, ACROSS, M)), 2, REDUCE)
        elif N > 8:
            total = total[None, :]
        if tl.load(bad + layer) == 0:
            factor = unscale * (1 / (N * M) if REDUCE == MEAN else 1.0)
            write_scores(score, units, in_grid, total, factor, decay, EMA)
            tl.store(seen + layer, 1)


@triton.jit
def step_lines(
    pointers, shapes, chunks, bad, seen, all_rates, decay, unscale,
    W: tl.constexpr, G: tl.constexpr, CRITERION: tl.constexpr, REDUCE: tl.constexpr, EMA: tl.constexpr,
    SCORED: tl.constexpr, MASKED: tl.constexpr, IS_LINES: tl.constexpr, IS_LINES_T: tl.constexpr,
    UNITS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """`UNITS` whole units, `WIDTH` of their weights at a time."""
    entry, layer, shape, units, size, u0 = open_line(shapes, chunks, IS_LINES, IS_LINES_T, UNITS)
    addresses = pointers + entry * _OPERANDS
    weight = tl.load(addresses).to(tl.pointer_type(W))
    grad = tl.load(addresses + 1).to(tl.pointer_type(G))
    score = tl.load(addresses + 2).to(tl.pointer_type(tl.float32))
    mask = tl.load(addresses + 3).to(tl.pointer_type(tl.int8))
    first = tl.load(addresses + 4).to(tl.pointer_type(W))
    second = tl.load(addresses + 5).to(tl.pointer_type(W))
    if IS_LINES or IS_LINES_T:
        weight, grad = tl.multiple_of(weight, 16), tl.multiple_of(grad, 16)
        first, second = tl.multiple_of(first, 16), tl.multiple_of(second, 16)
    rates = all_rates + layer * 6
    u = u0 + tl.arange(0, UNITS)
    keep = tl.full((UNITS,), 1, tl.int8)
    if MASKED:
        keep = tl.load(mask + u.to(tl.int64), mask=u < units, other=0)
    total = tl.zeros((UNITS, WIDTH), tl.float32)
    for start in range(0, size, WIDTH):
        e = start + tl.arange(0, WIDTH)
        offs = line_offsets(shape, u, e, IS_LINES, IS_LINES_T)
        inside = (u < units)[:, None] & (e < size)[None, :]
        cost = _step(weight, grad, first, second, rates, offs, inside, keep[:, None], MASKED, CRITERION)
        total = join_costs(total, cost, REDUCE)
    if SCORED:
        total = reduce_costs(total, 1, REDUCE)
        if tl.load(bad + layer) == 0:
            factor = tl.div_rn(unscale, size.to(tl.float32)) if REDUCE == MEAN else unscale
            write_scores(score, u.to(tl.int64), u < units, total, factor, decay, EMA)
            tl.store(seen + layer, 1)


def threads(layout: int, itemsize: int) -> int:
    """Few enough that each reads 16 bytes at once, and enough that their registers hold what they read."""
    return 512 if layout == STRIDED or (layout in (TILES, TILES_T) and itemsize == 4) else 256


def masked_adamw(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    firsts: Sequence[Tensor],
    seconds: Sequence[Tensor],
    rates: Tensor,
    scores: Sequence[Tensor],
    masks: Sequence[Tensor],
    blocks: Sequence[tuple[int, int]],
    seen: Tensor,
    criterion: str,
    reduce: str,
    decay: float,
    grad_scale: float,
    plan: Sequence[Tensor] = (),
) -> None:
    """One launch for all layers of one layout and dtype, and one for the guard if scores are kept.

    Arguments as in `trisparse.sparse_ops.masked_adamw`, but for `plan`: of `plan_units` over weights, then
    grads, scores, masks and moments, the weights standing in for scores and masks that are not given.
    """
    beside = [grads, scores or weights, masks or weights, firsts, seconds]
    todo = launches(plan or plan_units(weights, beside, blocks))
    bad = torch.zeros_like(seen, dtype=torch.int32)
    flags = bad, seen.view(torch.int8)
    constants = {
        "CRITERION": CRITERIA[criterion],
        "REDUCE": REDUCTIONS[reduce],
        "EMA": criterion == "snip_momentum" and decay != 0,
        "SCORED": bool(scores),
        "MASKED": bool(masks),
    }
    for launch in todo if scores else []:
        find_bad(launch, flags)
    for launch in todo:
        _launch(launch, (*flags, rates, decay, 1 / grad_scale), constants)


def _launch(launch: Launch, arguments: tuple, constants: dict) -> None:
    constants = constants | {"W": TYPES[launch.dtypes[0]], "G": TYPES[launch.dtypes[1]]}
    layout, (first, second) = launch.layout, launch.tile
    constants["num_warps"] = warps(threads(layout, launch.dtypes[0].itemsize))
    tables = launch.pointers, launch.shapes, launch.chunks
    if layout in (TILES, TILES_T):
        n, m = launch.block
        tile = {"TRANSPOSED": layout == TILES_T, "N": n, "M": m, "DOWN": first, "ACROSS": second}
        step_tiles[(len(launch.chunks),)](*tables, *arguments, **constants, **tile)
    else:
        line = {"IS_LINES": layout == LINES, "IS_LINES_T": layout == LINES_T, "UNITS": first, "WIDTH": second}
        step_lines[(len(launch.chunks),)](*tables, *arguments, **constants, **line)

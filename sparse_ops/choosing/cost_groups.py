"""N:M groups of all layers: which weights of each are the best, and what it costs to prune the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trisparse.kernels.plan import plan_groups
from trisparse.sparse_ops.checks import check_device, check_lengths
from trisparse.sparse_ops.choosing.apply_masks import apply_masks_on_cpu, apply_masks_reference
from trisparse.sparse_ops.choosing.nm_mask import nm_mask, nm_mask_reference
from trisparse.sparse_ops.choosing.plan import Plan
from trisparse.sparse_ops.library import define, nothing


def cost_groups_reference(ranked, scores, best, costs, n: int, m: int) -> None:
    """Plain torch; see `cost_groups`."""
    for order, score, keep, cost in zip(ranked, scores, best, costs, strict=True):
        keep.copy_(nm_mask_reference(order, n, m))
        lost = score.clone()
        apply_masks_reference([lost], [~keep], [(1, 1)])
        _sum_groups(lost, cost, m)


def _sum_groups(lost: Tensor, cost: Tensor, m: int) -> None:
    """From the first place of a group to the last, in fp32."""
    first, *rest = lost.view(*cost.shape, m).unbind(-1)
    cost.copy_(first)
    for column in rest:
        cost.add_(column)


def _reference(ranked, scores, best, costs, n, m, plan) -> None:
    cost_groups_reference(ranked, scores, best, costs, n, m)


def _on_cpu(ranked, scores, best, costs, n, m, plan) -> None:
    for order, score, keep, cost in zip(ranked, scores, best, costs, strict=True):
        keep.copy_(nm_mask(order, n, m))
        lost = score.clone()
        apply_masks_on_cpu([lost], [~keep], [(1, 1)])
        _sum_groups(lost, cost, m)


def _kernel(ranked, scores, best, costs, n, m, plan) -> None:
    from trisparse.kernels.gpu.cost_groups import cost_groups

    cost_groups(ranked, scores, best, costs, n, m, plan)


_call = define(
    "cost_groups(Tensor[] ranked, Tensor[] scores, Tensor(a!)[] best, Tensor(b!)[] costs, int n, int m, "
    "Tensor[] plan) -> ()",
    _reference, _kernel, nothing, _on_cpu,
)  # fmt: skip


def cost_groups(
    scores: Sequence[Tensor], best: Sequence[Tensor], costs: Sequence[Tensor], n: int, m: int,
    ranked: Sequence[Tensor] | None = None, plan: Plan | None = None,
) -> None:  # fmt: skip
    """The n best of every m consecutive scores of a row, and the sum of the scores of the others, for all layers.

    Best are those of `nm_mask`: a tie goes to the lower place, NaN counts as the highest. Sums are taken from the first
    place of a group to the last, in fp32. One launch for all layers on a GPU.

    Args:
        scores: fp32 `[rows, cols]` each, contiguous, cols a multiple of m.
        best: bool `[rows, cols]` each, contiguous; written.
        costs: fp32 `[rows, cols / m]` each, contiguous; written.
        n: how many are best.
        m: of so many, at most 32.
        ranked: choose by these instead of the scores; shaped like them.
        plan: keeps what need be done only once; see `Plan`.

    Raises:
        ValueError: n and m, or a shape, that do not fit.
        TypeError: a dtype that does not fit, or what is not contiguous.
    """
    ranked = scores if ranked is None else ranked
    (plan or Plan()).check("cost_groups", lambda: _check(ranked, scores, best, costs, n, m))
    if not scores:
        return
    tables = []
    if plan:
        operands = ranked, scores, best, costs
        lengths = [score.numel() // m for score in scores]
        tables = plan.tables("cost_groups", lambda old, found: plan_groups(operands, lengths, m, old, found), *operands)
    _call(ranked, scores, best, costs, n, m, tables)


def _check(ranked, scores, best, costs, n, m) -> None:
    check_lengths(scores=scores, ranked=ranked, best=best, costs=costs)
    if not 1 <= n <= m <= 32:
        raise ValueError(f"n, m: want 1 <= n <= m <= 32, got {n}:{m}")
    check_device(scores=scores, ranked=ranked, best=best, costs=costs)
    for i, score in enumerate(scores):
        if score.dim() != 2 or score.shape[1] % m:
            raise ValueError(f"scores[{i}]: want [rows, cols] with cols a multiple of {m}, got {list(score.shape)}")
        rows, cols = score.shape
        for name, tensor, dtype, want in (
            ("scores", score, torch.float32, (rows, cols)), ("ranked", ranked[i], torch.float32, (rows, cols)),
            ("best", best[i], torch.bool, (rows, cols)), ("costs", costs[i], torch.float32, (rows, cols // m)),
        ):  # fmt: skip
            if tuple(tensor.shape) != want:
                raise ValueError(f"{name}[{i}]: want {list(want)}, got {list(tensor.shape)}")
            if tensor.dtype != dtype or not tensor.is_contiguous():
                raise TypeError(f"{name}[{i}]: want contiguous {dtype}, got {tensor.dtype}")

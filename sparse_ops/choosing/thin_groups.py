"""N:M groups that were chosen to be pruned lose all but their best weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trisparse.kernels.plan import plan_groups
from trisparse.sparse_ops.checks import check_device, check_lengths
from trisparse.sparse_ops.choosing.plan import Plan
from trisparse.sparse_ops.choosing.units import expand_units
from trisparse.sparse_ops.library import define, nothing


def thin_groups_reference(kept, best, before, after, m: int) -> None:
    """Plain torch; see `thin_groups`."""
    for keep, top, was, now in zip(kept, best, before, after, strict=True):
        keep &= top | ~expand_units(was & ~now, (1, m))


def _reference(kept, best, before, after, m, plan) -> None:
    thin_groups_reference(kept, best, before, after, m)


def _kernel(kept, best, before, after, m, plan) -> None:
    from trisparse.kernels.gpu.thin_groups import thin_groups

    thin_groups(kept, best, before, after, m, plan)


_call = define(
    "thin_groups(Tensor(a!)[] kept, Tensor[] best, Tensor[] before, Tensor[] after, int m, Tensor[] plan) -> ()",
    _reference, _kernel, nothing,
)  # fmt: skip


def thin_groups(
    kept: Sequence[Tensor], best: Sequence[Tensor], before: Sequence[Tensor], after: Sequence[Tensor], m: int,
    plan: Plan | None = None,
) -> None:  # fmt: skip
    """Groups that are dense in `before` and not in `after` keep only what is best of them, in place, for all layers.

    Args:
        kept: bool `[rows, cols]` each, contiguous; changed in place.
        best: bool, likewise, from `cost_groups`.
        before: bool `[rows, cols / m]` each, contiguous, True = dense.
        after: likewise, as `select_units` left it.
        m: weights of a group.
        plan: keeps what need be done only once; see `Plan`.

    Raises:
        ValueError: a shape that does not fit.
        TypeError: what is not contiguous bool.
    """
    (plan or Plan()).check("thin_groups", lambda: _check(kept, best, before, after, m))
    if not kept:
        return
    tables = []
    if plan:
        operands = kept, best, before, after
        lengths = [was.numel() for was in before]
        tables = plan.tables("thin_groups", lambda old, found: plan_groups(operands, lengths, m, old, found), *operands)
    _call(kept, best, before, after, m, tables)


def _check(kept, best, before, after, m) -> None:
    check_lengths(kept=kept, best=best, before=before, after=after)
    check_device(kept=kept, best=best, before=before, after=after)
    for i, keep in enumerate(kept):
        if keep.dim() != 2 or m < 1 or keep.shape[1] % m:
            raise ValueError(f"kept[{i}]: want [rows, cols] with cols a multiple of {m}, got {list(keep.shape)}")
        rows, cols = keep.shape
        for name, tensor, want in (
            ("kept", keep, (rows, cols)), ("best", best[i], (rows, cols)),
            ("before", before[i], (rows, cols // m)), ("after", after[i], (rows, cols // m)),
        ):  # fmt: skip
            if tuple(tensor.shape) != want:
                raise ValueError(f"{name}[{i}]: want {list(want)}, got {list(tensor.shape)}")
            if tensor.dtype != torch.bool or not tensor.is_contiguous():
                raise TypeError(f"{name}[{i}]: want contiguous torch.bool, got {tensor.dtype}")

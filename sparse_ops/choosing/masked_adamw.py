"""AdamW, score and mask of unit views in one operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trisparse.kernels.plan import plan_units
from trisparse.sparse_ops.checks import check_device, check_lengths
from trisparse.sparse_ops.choosing.apply_masks import apply_masks_on_cpu, apply_masks_reference, check_masks
from trisparse.sparse_ops.choosing.plan import Plan
from trisparse.sparse_ops.choosing.score_units import (
    CRITERIA,
    REDUCTIONS,
    check_grad,
    check_scores,
    like_weight,
    score_units_on_cpu,
    score_units_reference,
)
from trisparse.sparse_ops.choosing.units import Block, check_view, flat, pairs
from trisparse.sparse_ops.library import define, nothing

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of weights


def adamw_rates(lr: float, betas: tuple[float, float], eps: float, weight_decay: float, step: int) -> list[float]:
    """A row of `rates` for the step that makes `step` of them, from 1."""
    first, second = betas
    return [
        1 - lr * weight_decay, 1 - first, second, lr / (1 - first**step), (1 - second**step) ** 0.5, eps,
    ]  # fmt: skip


def masked_adamw_reference(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    firsts: Sequence[Tensor],
    seconds: Sequence[Tensor],
    rates: Tensor,
    scores: Sequence[Tensor],
    masks: Sequence[Tensor],
    blocks: Sequence[Block],
    seen: Tensor,
    criterion: str,
    reduce: str,
    decay: float,
    grad_scale: float,
    score: Callable[..., None] = score_units_reference,
    mask: Callable[..., None] = apply_masks_reference,
) -> None:
    """Plain torch, but for what may score and mask; see `masked_adamw`."""
    if scores:
        score(scores, weights, grads, blocks, seen, criterion, reduce, decay, grad_scale)
    for weight, grad, first, second, row in zip(weights, grads, firsts, seconds, rates.tolist(), strict=True):
        if grad is None:
            continue
        keep, to_first, beta2, size, root, eps = row
        grad = grad.to(weight.dtype)
        weight.mul_(keep)
        first.lerp_(grad, to_first)
        second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        weight.addcdiv_(first, (second.sqrt() / root).add_(eps), value=-size)
    if masks:
        mask(weights, masks, blocks)


def _reference(weights, grads, firsts, seconds, rates, scores, masks, blocks, *rest) -> None:
    masked_adamw_reference(weights, grads, firsts, seconds, rates, scores, masks, pairs(blocks), *rest[:-1])


def _on_cpu(
    weights, grads, firsts, seconds, rates, scores, masks, blocks, seen, criterion, reduce, decay, grad_scale, plan
) -> None:
    from trisparse.kernels.cpu.masked_adamw import masked_adamw

    blocks, how = pairs(blocks), (criterion, reduce, decay, grad_scale)
    left = masked_adamw(weights, grads, firsts, seconds, rates, scores, masks, blocks, seen, *how)
    if left:
        own = seen[left]

        def of_left(part):
            return [part[i] for i in left] if part else []

        masked_adamw_reference(
            of_left(weights), of_left(grads), of_left(firsts), of_left(seconds), rates[left], of_left(scores),
            of_left(masks), of_left(blocks), own, *how, score_units_on_cpu, apply_masks_on_cpu,
        )  # fmt: skip
        seen[left] = own


def _kernel(weights, grads, firsts, seconds, rates, scores, masks, blocks, *rest) -> None:
    from trisparse.kernels.gpu.masked_adamw import masked_adamw

    masked_adamw(weights, grads, firsts, seconds, rates, scores, masks, pairs(blocks), *rest)


_call = define(
    "masked_adamw(Tensor(a!)[] weights, Tensor?[] grads, Tensor(b!)[] firsts, Tensor(c!)[] seconds, Tensor rates, "
    "Tensor(d!)[] scores, Tensor[] masks, int[] blocks, Tensor(e!) seen, str criterion, str reduce, float decay, "
    "float grad_scale, Tensor[] plan) -> ()",
    _reference,
    _kernel,
    nothing,
    _on_cpu,
)


def masked_adamw(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    firsts: Sequence[Tensor],
    seconds: Sequence[Tensor],
    rates: Tensor,
    scores: Sequence[Tensor],
    masks: Sequence[Tensor],
    blocks: Sequence[Block],
    seen: Tensor,
    criterion: str = "snip_momentum",
    reduce: str = "mean",
    decay: float = 0.9,
    grad_scale: float = 1.0,
    plan: Plan | None = None,
) -> None:
    """Score units, step their weights by AdamW and write zeros where masks prune: one pass instead of three.

    Equal to `score_units`, then `torch.optim.AdamW`, then `apply_masks`, to rounding: kernels compute everything in
    fp32 and round once. On a CPU moments stay as they were where a line of the cache holds pruned weights alone, and
    those below the smallest normal number become zero.

    Args:
        weights: unit views, fp32, bf16 or fp16; changed in place.
        grads: gradients in the layout of `weights`, as the optimizer sees them; a layer with None is not
            stepped, and on CUDA not masked either: it has not changed.
        firsts: first moments in the layout and dtype of `weights`; changed in place.
        seconds: second moments, likewise.
        rates: fp64 `[layers, 6]`, rows of `adamw_rates`.
        scores: as in `score_units`, or none at all.
        masks: as in `apply_masks`, or none at all.
        blocks: `(n, m)` of each layer, of scores and masks both.
        seen: as in `score_units`.
        criterion: `gradient`, `snip` or `snip_momentum`.
        reduce: as in `score_units`.
        decay: as in `score_units`.
        grad_scale: as in `score_units`; the step takes the gradients as they are.
        plan: keeps what need be done only once, for one choice of scores and masks; see `Plan`.

    Raises:
        ValueError: a criterion, reduction or shape that does not fit.
        TypeError: a dtype that does not fit.
    """
    (plan or Plan()).check(
        "masked_adamw",
        lambda: _check(weights, grads, firsts, seconds, rates, scores, masks, blocks, seen, criterion, reduce),
    )
    if not weights:
        return
    grads = [  # a call for each would cost more than what it looks at
        grad if grad is None or grad.stride() == weight.stride() else like_weight(weight, grad)
        for weight, grad in zip(weights, grads, strict=True)
    ]
    tables = []
    if plan:
        beside = [grads, scores or weights, masks or weights, firsts, seconds]
        tables = plan.tables(
            "masked_adamw", lambda old, found: plan_units(weights, beside, blocks, old, found), weights, *beside
        )
    _call(
        weights, grads, firsts, seconds, rates, scores, masks, flat(blocks), seen, criterion, reduce, decay,
        grad_scale, tables,
    )  # fmt: skip


def _check(weights, grads, firsts, seconds, rates, scores, masks, blocks, seen, criterion, reduce) -> None:
    lists = {"weights": weights, "grads": grads, "firsts": firsts, "seconds": seconds, "rates": rates, "blocks": blocks}
    check_lengths(**lists, **({"scores": scores} if scores else {}), **({"masks": masks} if masks else {}))
    if criterion not in CRITERIA or criterion == "magnitude":
        raise ValueError(f"criterion: want gradient, snip or snip_momentum, got {criterion!r}")
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce: want one of {', '.join(REDUCTIONS)}, got {reduce!r}")
    check_device(weights=weights, grads=grads, firsts=firsts, seconds=seconds, rates=rates, scores=scores, masks=masks)
    if rates.dtype != torch.float64 or rates.shape != (len(weights), 6):
        raise TypeError(f"rates: want torch.float64 [{len(weights)}, 6], got {rates.dtype} {list(rates.shape)}")
    if scores:
        check_scores(scores, weights, grads, blocks, seen)
    if masks:
        check_masks(masks, weights, blocks)
    for i, (weight, grad, first, second, block) in enumerate(zip(weights, grads, firsts, seconds, blocks, strict=True)):
        check_view(f"weights[{i}]", weight, block)
        if weight.dtype not in DTYPES:
            raise TypeError(f"weights[{i}]: want one of {', '.join(map(str, DTYPES))}, got {weight.dtype}")
        for name, moment in (("firsts", first), ("seconds", second)):
            if moment.shape != weight.shape or moment.stride() != weight.stride() or moment.dtype != weight.dtype:
                raise TypeError(
                    f"{name}[{i}]: want {weight.dtype} {list(weight.shape)} with strides {weight.stride()} like its "
                    f"weight, got {moment.dtype} {list(moment.shape)} with {moment.stride()}"
                )
        check_grad(f"grads[{i}]", grad, weight)

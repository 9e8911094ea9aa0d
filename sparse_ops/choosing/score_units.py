"""Score units: what it would cost to remove each, from weights and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trisparse.kernels.plan import plan_units
from trisparse.sparse_ops.checks import check_device, check_lengths
from trisparse.sparse_ops.choosing.plan import Plan
from trisparse.sparse_ops.choosing.units import Block, check_units, check_view, flat, pairs
from trisparse.sparse_ops.library import define, nothing


def _magnitude(weight: Tensor, grad: Tensor | None, out: Tensor) -> Tensor:
    return out.copy_(weight).abs_()


def _gradient(weight: Tensor, grad: Tensor | None, out: Tensor) -> Tensor:
    assert grad is not None
    return out.copy_(grad).abs_()


def _snip(weight: Tensor, grad: Tensor | None, out: Tensor) -> Tensor:
    assert grad is not None
    if weight.dtype == grad.dtype == torch.float32:
        return torch.mul(weight, grad, out=out).abs_()
    return out.copy_(weight).mul_(grad).abs_()  # the product of two halves is taken in fp32


CRITERIA: dict[str, Callable[[Tensor, Tensor | None, Tensor], Tensor]] = {
    "magnitude": _magnitude,
    "gradient": _gradient,
    "snip": _snip,
    "snip_momentum": _snip,
}
REDUCTIONS: dict[str, Callable[[Tensor, tuple[int, int]], Tensor]] = {
    "mean": Tensor.mean,
    "sum": Tensor.sum,
    "max": Tensor.amax,
}


def score_units_reference(
    scores: Sequence[Tensor],
    weights: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    blocks: Sequence[Block],
    seen: Tensor,
    criterion: str,
    reduce: str,
    decay: float,
    grad_scale: float,
) -> None:
    """Plain torch; see `score_units`."""
    if not scores:
        return
    updated = [False] * len(scores)
    score_weights = CRITERIA[criterion]
    needs_grad = criterion != "magnitude"
    decay = decay if criterion == "snip_momentum" else 0.0
    scratch = torch.empty(max(w.numel() for w in weights), dtype=torch.float32, device=seen.device)  # stays in cache
    for i, (score, weight, grad, (n, m)) in enumerate(zip(scores, weights, grads, blocks, strict=True)):
        if (grad is None and needs_grad) or not weight.numel():
            continue
        cost = score_weights(weight, grad, scratch[: weight.numel()].view(weight.shape))
        rows, cols = score.shape
        cost = REDUCTIONS[reduce](cost.view(rows, n, cols, m), (1, 3)) if n * m > 1 else cost.view(rows, cols)
        # a gradient that is not finite makes its cost so, and the sum of costs, which are not negative
        if grad is not None and needs_grad and not math.isfinite(cost.sum()) and not grad.float().isfinite().all():
            continue
        if needs_grad and grad_scale != 1:
            cost.div_(grad_scale)
        if decay:
            torch.add(cost, score, alpha=decay, out=score)
        else:
            score.copy_(cost)
        updated[i] = True
    seen |= torch.tensor(updated, device=seen.device)


def _reference(scores, weights, grads, blocks, seen, criterion, reduce, decay, grad_scale, plan) -> None:
    score_units_reference(scores, weights, grads, pairs(blocks), seen, criterion, reduce, decay, grad_scale)


def _on_cpu(scores, weights, grads, blocks, seen, criterion, reduce, decay, grad_scale, plan) -> None:
    score_units_on_cpu(scores, weights, grads, pairs(blocks), seen, criterion, reduce, decay, grad_scale)


def score_units_on_cpu(scores, weights, grads, blocks, seen, criterion, reduce, decay, grad_scale) -> None:
    """As `score_units_reference`, in C++ for the layers that there is a kernel for."""
    from trisparse.kernels.cpu.score_units import score_units

    left = score_units(scores, weights, grads, blocks, seen, criterion, reduce, decay, grad_scale)
    if left:
        own = seen[left]
        score_units_reference(
            [scores[i] for i in left], [weights[i] for i in left], [grads[i] for i in left], [blocks[i] for i in left],
            own, criterion, reduce, decay, grad_scale,
        )  # fmt: skip
        seen[left] = own


def _kernel(scores, weights, grads, blocks, seen, criterion, reduce, decay, grad_scale, plan) -> None:
    from trisparse.kernels.gpu.score_units import score_units

    score_units(scores, weights, grads, pairs(blocks), seen, criterion, reduce, decay, grad_scale, plan)


_call = define(
    "score_units(Tensor(a!)[] scores, Tensor[] weights, Tensor?[] grads, int[] blocks, Tensor(b!) seen, "
    "str criterion, str reduce, float decay, float grad_scale, Tensor[] plan) -> ()",
    _reference,
    _kernel,
    nothing,
    _on_cpu,
)


def score_units(
    scores: Sequence[Tensor],
    weights: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    blocks: Sequence[Block],
    seen: Tensor,
    criterion: str = "snip_momentum",
    reduce: str = "mean",
    decay: float = 0.9,
    grad_scale: float = 1.0,
    plan: Plan | None = None,
) -> None:
    """Update the score of every unit of every layer in place, in fp32.

    With c = |W| (`magnitude`), |G| (`gradient`) or |W * G| (`snip`, `snip_momentum`), and R the
    reduction over the weights of a unit: S <- decay * S + R(c) for `snip_momentum`, S <- R(c) else.
    A layer with no gradient, or with one that is infinite or NaN somewhere, keeps its scores. On a CPU an S that falls
    below the smallest normal number becomes zero.
    Sources: SNIP, arXiv 1810.02340; its running mean as in neural-compressor's `snip_momentum`.

    Args:
        scores: fp32 `[rows/n, cols/m]` each, contiguous; changed in place.
        weights: unit views, any float dtype.
        grads: gradients in the layout of `weights`, or None for a layer that has none.
        blocks: `(n, m)` of each layer.
        seen: bool `[layers]`; set to True for each layer whose scores are updated, else left.
        criterion: a key of `CRITERIA`.
        reduce: `mean`, `sum` or `max` over the weights of a unit.
        decay: weight of the old score, for `snip_momentum` only.
        grad_scale: what a gradient scaler multiplied the gradients by; divided out.
        plan: keeps what need be done only once; see `Plan`.

    Raises:
        ValueError: an unknown criterion or reduction, or a shape that does not fit.
        TypeError: a dtype that does not fit, or scores that are not contiguous.
    """
    (plan or Plan()).check("score_units", lambda: _check(scores, weights, grads, blocks, seen, criterion, reduce))
    if not scores:
        return
    grads = [  # a call for each would cost more than what it looks at
        grad if grad is None or grad.stride() == weight.stride() else like_weight(weight, grad)
        for weight, grad in zip(weights, grads, strict=True)
    ]
    tables = []
    if plan:
        beside = [weights if criterion == "magnitude" else grads, scores]
        tables = plan.tables(
            "score_units", lambda old, found: plan_units(weights, beside, blocks, old, found), weights, *beside
        )
    _call(scores, weights, grads, flat(blocks), seen, criterion, reduce, decay, grad_scale, tables)


def like_weight(weight: Tensor, grad: Tensor) -> Tensor:
    """The gradient with its weight's strides, a copy only where they differ."""
    if all(size == 1 or a == b for size, a, b in zip(grad.shape, grad.stride(), weight.stride(), strict=True)):
        return grad
    return torch.empty_strided(weight.shape, weight.stride(), dtype=grad.dtype, device=grad.device).copy_(grad)


def _check(
    scores: Sequence[Tensor],
    weights: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    blocks: Sequence[Block],
    seen: Tensor,
    criterion: str,
    reduce: str,
) -> None:
    check_lengths(scores=scores, weights=weights, grads=grads, blocks=blocks, seen=seen)
    if criterion not in CRITERIA:
        raise ValueError(f"criterion: want one of {', '.join(CRITERIA)}, got {criterion!r}")
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce: want one of {', '.join(REDUCTIONS)}, got {reduce!r}")
    check_device(weights=weights, scores=scores, grads=grads, seen=seen)
    for i, (weight, block) in enumerate(zip(weights, blocks, strict=True)):
        check_view(f"weights[{i}]", weight, block)
    check_scores(scores, weights, grads, blocks, seen)


def check_scores(
    scores: Sequence[Tensor],
    weights: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    blocks: Sequence[Block],
    seen: Tensor,
) -> None:
    """TypeError or ValueError unless kernels can write scores of these weights, by these gradients."""
    if seen.dtype != torch.bool or seen.shape != (len(weights),) or not seen.is_contiguous():
        want = f"contiguous torch.bool [{len(weights)}], one a layer"
        raise TypeError(f"seen: want {want}, got {seen.dtype} {list(seen.shape)}")
    for i, (score, weight, grad, block) in enumerate(zip(scores, weights, grads, blocks, strict=True)):
        check_units(f"scores[{i}]", score, weight, block)
        if score.dtype != torch.float32 or not score.is_contiguous():
            raise TypeError(f"scores[{i}]: want contiguous torch.float32, got {score.dtype}")
        check_grad(f"grads[{i}]", grad, weight)


def check_grad(name: str, grad: Tensor | None, weight: Tensor) -> None:
    """ValueError for a gradient of another shape than its weight's."""
    if grad is not None and grad.shape != weight.shape:
        raise ValueError(f"{name}: want {list(weight.shape)} like its weight, got {list(grad.shape)}")

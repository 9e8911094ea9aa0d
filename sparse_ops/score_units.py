"""Score units: what it would cost to remove each, from weights and gradients."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trisparse.sparse_ops.units import Block, check_lengths, check_units, check_view


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
    criterion: str,
    reduce: str,
    decay: float,
    grad_scale: float,
) -> list[bool]:
    """Plain torch; see `score_units`."""
    updated = [False] * len(scores)
    if not scores:
        return updated
    score_weights = CRITERIA[criterion]
    needs_grad = criterion != "magnitude"
    decay = decay if criterion == "snip_momentum" else 0.0
    scratch: dict[torch.device, Tensor] = {}  # one for all layers: it stays in cache
    largest = max(w.numel() for w in weights)
    for i, (score, weight, grad, (n, m)) in enumerate(zip(scores, weights, grads, blocks, strict=True)):
        if grad is None and needs_grad:
            continue
        if weight.device not in scratch:
            scratch[weight.device] = torch.empty(largest, dtype=torch.float32, device=weight.device)
        cost = score_weights(weight, grad, scratch[weight.device][: weight.numel()].view(weight.shape))
        rows, cols = score.shape
        cost = REDUCTIONS[reduce](cost.view(rows, n, cols, m), (1, 3)) if n * m > 1 else cost.view(rows, cols)
        # costs are never negative: their sum is finite exactly when each of them is
        if needs_grad and not math.isfinite(cost.sum()):
            continue
        if needs_grad and grad_scale != 1:
            cost.div_(grad_scale)
        if decay:
            torch.add(cost, score, alpha=decay, out=score)
        else:
            score.copy_(cost)
        updated[i] = True
    return updated


def score_units(
    scores: Sequence[Tensor],
    weights: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    blocks: Sequence[Block],
    criterion: str = "snip_momentum",
    reduce: str = "mean",
    decay: float = 0.9,
    grad_scale: float = 1.0,
) -> list[bool]:
    """Update the score of every unit of every layer in place, in fp32.

    With c = |W| (`magnitude`), |G| (`gradient`) or |W * G| (`snip`, `snip_momentum`), and R the
    reduction over the weights of a unit: S <- decay * S + R(c) for `snip_momentum`, S <- R(c) else.
    Sources: SNIP, arXiv 1810.02340; its running mean as in neural-compressor's `snip_momentum`.

    Args:
        scores: fp32 `[rows/n, cols/m]` each, contiguous; changed in place.
        weights: unit views, any float dtype.
        grads: gradients in the layout of `weights`, or None for a layer that has none.
        blocks: `(n, m)` of each layer.
        criterion: a key of `CRITERIA`.
        reduce: `mean`, `sum` or `max` over the weights of a unit.
        decay: weight of the old score, for `snip_momentum` only.
        grad_scale: what a gradient scaler multiplied the gradients by; divided out.

    Returns:
        For each layer whether its scores were updated. A layer with no gradient, or with a cost that
        is infinite or NaN, keeps its scores.

    Raises:
        ValueError: an unknown criterion or reduction, or a shape that does not fit.
        TypeError: scores that are not contiguous fp32.
    """
    check_lengths(scores=scores, weights=weights, grads=grads, blocks=blocks)
    if criterion not in CRITERIA:
        raise ValueError(f"criterion: want one of {', '.join(CRITERIA)}, got {criterion!r}")
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce: want one of {', '.join(REDUCTIONS)}, got {reduce!r}")
    for i, (score, weight, grad, block) in enumerate(zip(scores, weights, grads, blocks, strict=True)):
        check_view(f"weights[{i}]", weight, block)
        check_units(f"scores[{i}]", score, weight, block)
        if score.dtype != torch.float32 or not score.is_contiguous():
            raise TypeError(f"scores[{i}]: want contiguous torch.float32, got {score.dtype}")
        if grad is not None and grad.shape != weight.shape:
            raise ValueError(f"grads[{i}]: want {list(weight.shape)} like its weight, got {list(grad.shape)}")
    return score_units_reference(scores, weights, grads, blocks, criterion, reduce, decay, grad_scale)

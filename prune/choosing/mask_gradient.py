"""The gradient of a mask that nobody has multiplied by: of units, from their weights and these weights' gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trisparse.sparse_ops.choosing.units import Block, grid_shape

_DECAY = 0.9


def mask_gradient(view: Tensor, grad: Tensor, block: Block) -> Tensor:
    """∂L/∂m at m = 1 of a mask m with one value a unit, for a weight that is m ⊙ W: the sum of W · G over the unit.

    By the chain rule, ∂L/∂m_b = Σ_{i in b} W_i · ∂L/∂(m ⊙ W)_i, and at m = 1 the last factor is G_i. So it holds
    whatever the model does with the weight, once or many times. Where a unit is pruned, W = 0 makes it 0.

    Args:
        view: unit view of a weight, of any float dtype.
        grad: its gradient, in the same shape.
        block: weights of a unit down and across.

    Returns:
        fp32 `[rows / n, cols / m]`.
    """
    (n, m), (rows, cols) = block, grid_shape(view, block)
    return torch.mul(view.float(), grad.float()).reshape(rows, n, cols, m).sum((1, 3))


def score_masks(
    scores: Sequence[Tensor],
    views: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    blocks: Sequence[Block],
    seen: Tensor,
    grad_scale: float = 1.0,
) -> None:
    """S ← 0.9 · S + |∂L/∂m| for every unit, in place; neural-compressor's `block_mask`.

    A layer with no gradient, or with one that is infinite or NaN somewhere, keeps its scores. Nothing waits for the
    device.

    Args:
        scores: fp32 `[rows / n, cols / m]` each; changed in place.
        views: unit views of the weights.
        grads: their gradients, or None for a layer that has none.
        blocks: of each layer.
        seen: bool `[layers]`; set for each layer whose scores are updated.
        grad_scale: what a gradient scaler multiplied the gradients by; divided out.
    """
    for i, (score, view, grad, block) in enumerate(zip(scores, views, grads, blocks, strict=True)):
        if grad is None:
            continue
        is_finite = grad.isfinite().all()
        new = mask_gradient(view, grad, block).abs_().div_(grad_scale).add_(score, alpha=_DECAY)
        score.copy_(torch.where(is_finite, new, score))
        seen[i] |= is_finite

"""Scores that plain torch computes, where it is time for them: criteria without a kernel, and functions of one's own.

Every other criterion is `score_units`, in one pass over all layers. These go layer by layer, and keep nothing but what
they return. Where rows are spread over processes, what has to see a whole layer sees it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trisparse.prune.choosing.own_criterion import score_weights
from trisparse.prune.choosing.splitmix import mix
from trisparse.prune.config.group import GroupConfig
from trisparse.prune.layers.layer import Layer
from trisparse.prune.layers.shards import Exchange, Rows
from trisparse.sparse_ops.choosing.score_units import REDUCTIONS
from trisparse.sparse_ops.choosing.units import Block, grid_shape


@dataclass(frozen=True)
class Sight:
    """What a criterion sees of one layer: unit views, and the gradient unscaled in fp32 if it needs one."""

    config: GroupConfig
    layer: Layer
    block: Block
    grad: Tensor | None
    score: Tensor
    exchange: Exchange

    def units(self, weights: Tensor, reduce: str | None = None) -> Tensor:
        """One value a unit of one a weight, reduced as the config says or as is asked for."""
        return reduce_units(weights, self.block, reduce or self.config.criterion_reduce_type)

    @property
    def rows(self) -> Rows:
        """Which rows of units are here."""
        return self.layer.rows.of_units(self.block[0])


def reduce_units(weights: Tensor, block: Block, reduce: str) -> Tensor:
    """`[rows / n, cols / m]` of values in the layout of a unit view."""
    (rows, cols), (n, m) = grid_shape(weights, block), block
    return REDUCTIONS[reduce](weights.reshape(rows, n, cols, m), (1, 3))


def score_layers(
    config: GroupConfig,
    layers: Sequence[Layer],
    blocks: Sequence[Block],
    grads: Sequence[Tensor | None],
    scores: Sequence[Tensor],
    seen: Tensor,
    exchange: Exchange,
    grad_scale: float = 1.0,
) -> None:
    """As `score_units`, for one of `CRITERIA` and for functions of one's own; `grads` in the layout of unit views.

    Raises:
        PruningError: what a function of one's own returns is no score.
    """
    score_units = CRITERIA[config.criterion] if isinstance(config.criterion, str) else _own
    found = {}
    for i, (layer, block, grad, score) in enumerate(zip(layers, blocks, grads, scores, strict=True)):
        if config.needs_gradient:
            if grad is None or not grad.isfinite().all():
                continue
            grad = grad.float() / grad_scale
        found[i] = score_units(Sight(config, layer, block, grad, score, exchange))
    for i, score in found.items():  # together, so that an error leaves all as they were
        scores[i].copy_(score)
    seen[list(found)] = True


def _taylor(x: Sight) -> Tensor:
    """What the loss changes by if all weights of a unit go, to first order, squared (arXiv 1906.10771)."""
    assert x.grad is not None
    change = x.units(x.layer.view * x.grad, "sum").square()
    return change / (x.block[0] * x.block[1]) if x.config.criterion_reduce_type == "mean" else change


def _lamp(x: Sight) -> Tensor:
    costs = x.units(x.layer.view.double().square())
    return x.rows.of(lamp(x.exchange.all_rows(costs, x.rows)))


def lamp(costs: Tensor) -> Tensor:
    """Each cost over the sum of those that are no less: of W², the score of arXiv 2010.07611.

    Of equal costs the one of the lower index counts as less, as in the paper. What is not finite gets infinity.

    Args:
        costs: float64 `[rows, cols]`, not negative.

    Returns:
        fp32 `[rows, cols]`, at most 1; all zero if the costs are.
    """
    is_finite = costs.isfinite()
    flat = costs.masked_fill(~is_finite, 0.0).flatten()
    top = flat.max()
    ordered, place = (flat / top.clamp(min=torch.finfo(torch.float64).tiny)).sort(stable=True)
    # sums of whole numbers are the same in any order, so on any device
    digits = 2.0 ** (62 - flat.numel().bit_length())
    no_less = (ordered * digits).round().long().flip(0).cumsum(0).flip(0).clamp(min=1)
    score = torch.empty_like(flat, dtype=torch.float32)
    score[place] = (ordered * digits / no_less).float()
    return score.view(costs.shape).masked_fill(~is_finite, torch.inf)


def _random(x: Sight) -> Tensor:
    """The same for a unit at every event, on every process and after a resume: a hash of seed, layer and unit."""
    rows, cols = x.rows, x.score.shape[1]
    start = hashlib.blake2b(f"{x.config.seed or 0} {x.layer.name}".encode(), digest_size=7)
    place = torch.arange(rows.first * cols, (rows.first + rows.count) * cols, device=x.score.device)
    bits = mix(place + int.from_bytes(start.digest(), "little")) & 0xFFFFFF  # as many as fp32 holds
    return (bits.float() / 2**24).view(rows.count, cols)


def _own(x: Sight) -> Tensor:
    assert not isinstance(x.config.criterion, str)
    return x.units(score_weights(x.config.criterion, x.layer, x.grad, x.score, x.exchange))


CRITERIA: dict[str, Callable[[Sight], Tensor]] = {"taylor": _taylor, "lamp": _lamp, "random": _random}

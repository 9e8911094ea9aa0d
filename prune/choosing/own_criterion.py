"""A criterion of one's own: a function of copies of weight, gradient and score, whose result is checked."""

from __future__ import annotations

import torch
from torch import Tensor

from trisparse.prune.config.own_parts import Part, name_of, parameters
from trisparse.prune.config.patterns import Pattern
from trisparse.prune.errors import PruningError, one_line
from trisparse.prune.layers.layer import Layer
from trisparse.prune.layers.shards import Exchange

_OUTPUTS_FIRST = Pattern("1x1", "block")  # whose unit view is `[out, in]`, or `[out, taps, in]`


def score_weights(criterion: Part, layer: Layer, grad: Tensor | None, score: Tensor, exchange: Exchange) -> Tensor:
    """Scores of a layer's weights, fp32 in the layout of the unit view.

    Args:
        criterion: called with as many of weight, gradient and score as it has parameters: whole, as fp32 copies
            `[out, in]`, of a convolution `[out, taps * in]`.
        layer: that is scored.
        grad: in the layout of the unit view, if the criterion wants it.
        score: what came of the last call, as the matrix of the unit view, if the criterion wants it.
        exchange: of the processes that hold the layer's rows.

    Raises:
        PruningError: it fails, or returns anything but a finite float32 score of at least 0 for each weight.
    """
    view = layer.view
    given = (view, grad, score)[: parameters(criterion)]
    matrices = [_matrix(layer, tensor.reshape(view.shape), exchange) for tensor in given if tensor is not None]
    name = name_of(criterion)
    try:
        found = criterion(*matrices)
    except Exception as error:
        raise PruningError(f"pruning_type: {name} failed for {layer.name}: {one_line(error)}") from error
    _check(name, layer.name, found, matrices[0])
    whole = torch.empty(layer.shape, dtype=torch.float32, device=view.device)
    outputs_first = _OUTPUTS_FIRST.unit_view(whole, layer.layout)
    outputs_first.copy_(found.reshape(outputs_first.shape))
    return layer.rows.of(layer.unit_view(whole))


def _matrix(layer: Layer, mine: Tensor, exchange: Exchange) -> Tensor:
    """All rows of what is laid out like the unit view, in memory of its own."""
    whole = torch.empty(layer.shape, dtype=torch.float32, device=mine.device)
    layer.unit_view(whole).copy_(exchange.all_rows(mine, layer.rows))
    return _OUTPUTS_FIRST.unit_view(whole, layer.layout).flatten(1)


def _check(name: str, layer: str, found: object, like: Tensor) -> None:
    want = f"want float32 {list(like.shape)}, a score for each weight"
    if not isinstance(found, Tensor):
        raise PruningError(f"pruning_type: {name} returned a {type(found).__name__} for {layer}; {want}")
    if found.dtype != torch.float32 or found.shape != like.shape or found.device != like.device:
        kind = f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)}"
        where = "" if found.device == like.device else f" on {found.device}"
        raise PruningError(f"pruning_type: {name} returned {kind}{where} for {layer}; {want}")
    is_score = (found >= 0) & (found < torch.inf)
    if not is_score.all():
        raise PruningError(
            f"pruning_type: {name} gives {layer} a score of {found[~is_score][0].item():g}; want finite ones of at "
            "least 0, the lowest for what goes first"
        )

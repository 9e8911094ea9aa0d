"""How much of each layer goes: as the user says, or by the outliers that its block holds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from trisparse.prune.config.group import GroupConfig
from trisparse.prune.config.layer_names import finds
from trisparse.prune.errors import PruningError, nearest
from trisparse.prune.layers.layer import Layer
from trisparse.prune.layers.left_out import listed
from trisparse.prune.one_shot.calibrate import Block

OWL, OWL_M, OWL_LAMBDA = "owl", 5.0, 0.08


def given_sparsities(
    value: Any, layers: Sequence[Layer], group: GroupConfig, has_target: bool = True
) -> dict[str, float]:
    """The sparsity of each layer, by its name.

    Args:
        value: None for the target everywhere; a list, one a layer; or a mapping from names or expressions, where a name
            goes before an expression, and what none of them finds gets the target.
        layers: in the model's order.
        group: with the target and the bounds.
        has_target: whether somebody asked for that target, so that layers may get it.

    Raises:
        PruningError: another number of values than layers, one out of bounds, an expression that finds no layer, or two
            that find the same one and differ.
    """
    names = [layer.name for layer in layers]
    if value is None:
        return dict.fromkeys(names, group.target)
    if isinstance(value, Mapping):
        target = group.target if has_target else None
        found = {name: _of_one(name, value, names, target) for name in names}
        for key in value:
            if not any(_finds(key, name) for name in names):
                raise PruningError(f"layer_sparsity: {key!r} finds none of the pruned layers{nearest(key, names)}")
        if left := [name for name, sparsity in found.items() if sparsity is None]:
            raise PruningError(
                f"target_sparsity: missing; layer_sparsity says nothing of {listed(left)}; 0 there leaves a layer dense"
            )
    elif isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != len(names):
            raise PruningError(
                f"layer_sparsity: want {len(names)} values, one for each layer from {names[0]} to {names[-1]}, got "
                f"{len(value)}"
            )
        found = dict(zip(names, value, strict=True))
    else:
        raise PruningError(f"layer_sparsity: want a list, a mapping or {OWL!r}, got {value!r}")
    low, high = group.min_sparsity_ratio_per_op, group.max_sparsity_ratio_per_op
    for name, sparsity in found.items():
        is_number = isinstance(sparsity, (int, float)) and not isinstance(sparsity, bool)
        if not is_number or not low <= sparsity <= high:
            raise PruningError(f"layer_sparsity: want a number from {low} to {high} for {name}, got {sparsity!r}")
    if not any(found.values()):
        raise PruningError("layer_sparsity: 0 for every layer prunes nothing")
    return found


def _of_one(name: str, value: Mapping[Any, Any], names: Sequence[str], target: float | None) -> Any:
    if name in value:
        return value[name]
    keys = [key for key in value if key not in names and _finds(key, name)]
    for key in keys[1:]:
        if value[key] != value[keys[0]]:
            raise PruningError(
                f"layer_sparsity: {keys[0]!r} and {key!r} both find {name}, with {value[keys[0]]!r} and "
                f"{value[key]!r}; make them differ, or name the layer"
            )
    return value[keys[0]] if keys else target


def _finds(key: Any, name: str) -> bool:
    if not isinstance(key, str):
        raise PruningError(f"layer_sparsity: want names or expressions as keys, got {key!r}")
    try:
        return key == name or finds(key, name)
    except re.error as error:
        raise PruningError(f"layer_sparsity: {key!r} is no regular expression: {error}") from None


class Owl:
    """Outlier Weighed Layerwise sparsity: blocks with more outliers keep more; Yin et al. 2023, arXiv 2310.05175.

    Of a block's |W_ij| · ‖X_j‖₂, in the dense model, D is the share that is above M times their mean. Scaled to
    z = (D - min D) / (max D - min D), a block gets the sparsity target - 2λ(z - mean z), where blocks count by their
    weights, so that over all weights the mean is the target.

    Args:
        m: M, times the mean.
        lam: λ, so that sparsities lie in a range of 2λ.

    Raises:
        PruningError: an argument that is out of range.
    """

    def __init__(self, m: float = OWL_M, lam: float = OWL_LAMBDA) -> None:
        for name, value, high in (("owl_m", m, math.inf), ("owl_lambda", lam, 0.5)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < high:
                bounds = "above 0" if high == math.inf else f"above 0 and below {high}"
                raise PruningError(f"{name}: want a number {bounds}, got {value!r}")
        self._m, self._lambda = m, lam
        self._squares: dict[Layer, Tensor] = {}

    def look(self, layer: Layer, x: Tensor) -> None:
        """Add inputs `[tokens, in]` of a layer of the dense model."""
        self._squares[layer] = self._squares.get(layer, 0) + x.float().square().sum(0)

    def sparsities(self, blocks: Sequence[Block], group: GroupConfig) -> dict[str, float]:
        """The sparsity of each layer, by its name; layers of a block have the same.

        Raises:
            PruningError: a sparsity beyond the group's bounds, with the greatest λ that stays within.
        """
        shares = [self._outliers(block) for block in blocks]
        sizes = [sum(layer.numel for layer in block.layers) for block in blocks]
        low, width = min(shares), max(shares) - min(shares)
        scaled = [(share - low) / width if width else 0.0 for share in shares]
        mean = math.fsum(z * size for z, size in zip(scaled, sizes, strict=True)) / sum(sizes)
        target = group.target
        room = [target - group.min_sparsity_ratio_per_op, group.max_sparsity_ratio_per_op - target]
        reach = [max(scaled) - mean, mean - min(scaled)]
        if any(2 * self._lambda * r > left + 1e-9 for r, left in zip(reach, room, strict=True)):
            most = min(left / (2 * r) for r, left in zip(reach, room, strict=True) if r > 0)
            bounds = f"{group.min_sparsity_ratio_per_op} to {group.max_sparsity_ratio_per_op}"
            raise PruningError(
                f"owl_lambda: {self._lambda} takes blocks out of {bounds} around target_sparsity {target}; want at "
                f"most {math.floor(most * 1e4) / 1e4}"
            )
        return {
            layer.name: target - 2 * self._lambda * (z - mean)
            for z, block in zip(scaled, blocks, strict=True)
            for layer in block.layers
        }

    def _outliers(self, block: Block) -> float:
        """D of a block; experts that no token came to have no part in it."""
        seen = [layer for layer in block.layers if layer in self._squares]
        scores = [layer.view.float().abs() * self._squares.pop(layer).to(layer.view.device).sqrt() for layer in seen]
        weights = sum(score.numel() for score in scores)
        if not weights:
            return 0.0
        bar = self._m * float(sum(score.double().sum() for score in scores)) / weights
        return sum(int((score > bar).sum()) for score in scores) / weights

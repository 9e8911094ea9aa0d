"""Whether a model still holds the weights that a Pruner was built over."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from trisparse.prune.errors import PruningError
from trisparse.prune.layers.layer import Layer
from trisparse.prune.layers.modules import bare_modules
from trisparse.prune.pruner.group import PrunedGroup


def check_weights(groups: Sequence[PrunedGroup]) -> None:
    """PruningError for a parameter that its module does not hold any more, or that went to another device."""
    for group in groups:
        device = group.weights.device
        for layer in group.layers:
            weight = layer.weight
            if layer.module._parameters.get(layer.parameter) is not weight or weight.device != device:
                raise PruningError(
                    f"{layer.place}: was replaced or moved after the Pruner was built; "
                    "build the Pruner after .to(), prepare() and the like"
                )


def check_modules(model: nn.Module, layers: Sequence[Layer]) -> None:
    """PruningError for a module that the model does not hold any more."""
    held = {id(module) for _, module in bare_modules(model)}
    for layer in layers:
        if id(layer.module) not in held:
            raise PruningError(
                f"{layer.name}: its module is no longer in the model, so that what is there now is not pruned; "
                "build a Pruner after the last layer was replaced, and compress after the last report"
            )


def was_moved(groups: Sequence[PrunedGroup]) -> bool:
    """Whether a weight went to another device."""
    return any(layer.weight.device != group.weights.device for group in groups for layer in group.layers)

"""Masks in a copy of the model: an average of its weights, or one on another device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from trisparse.prune.errors import PruningError
from trisparse.prune.pruner.layers import bare_modules
from trisparse.prune.pruner.shards import local

_AVERAGED = ("module", "ema_model")  # where wrappers that average keep their copy


def mask_copy(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Zero the weights of a copy where masks prune, in place.

    Args:
        model: the copy, in a wrapper or not.
        masks: name of each layer in the bare model -> bool of the weight's shape, True = kept.

    Raises:
        PruningError: a layer is missing, or has another shape; nothing is changed then.
    """
    found = _layers(model, masks)
    weights: dict[str, Any] = {name: getattr(found.get(name), "weight", None) for name in masks}
    for name, weight in weights.items():
        if not isinstance(weight, Tensor) or local(weight).shape != local(masks[name]).shape:
            got = f"has shape {list(weight.shape)} there" if isinstance(weight, Tensor) else "is missing there"
            raise PruningError(
                f"model: {name}.weight {got}; want a copy of the model that the Pruner was given, or an average of it"
            )
    for name, weight in weights.items():
        mine = local(weight.detach())
        mine.masked_fill_(~local(masks[name]).to(mine.device), 0)


def _layers(model: nn.Module, names: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """Modules by name in the bare model, inside whatever wrapper has the names."""
    found = dict(bare_modules(model))
    for child in _AVERAGED:
        if not found.keys() >= names.keys() and child in model._modules:
            return _layers(model.get_submodule(child), names)
    return found

"""Masks in a copy of the model: an average of its weights, or one on another device."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from trisparse.prune.errors import PruningError
from trisparse.prune.layers.shards import local
from trisparse.prune.layers.weights import named_weights

_AVERAGED = ("module", "ema_model")  # where wrappers that average keep their copy


def mask_copy(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Zero the weights of a copy where masks prune, in place.

    Args:
        model: the copy, in a wrapper or not.
        masks: name of each layer in the bare model -> bool of the weight's shape, True = kept.

    Raises:
        PruningError: a layer is missing, or has another shape; nothing is changed then.
    """
    found = _weights(model, masks)
    for name, mask in masks.items():
        weight = found.get(name)
        if weight is None or weight.shape != local(mask).shape:
            got = "is missing there" if weight is None else f"has shape {list(weight.shape)} there"
            raise PruningError(
                f"model: {name} {got}; want a copy of the model that the Pruner was given, or an average of it"
            )
    for name, mask in masks.items():
        found[name].masked_fill_(~local(mask).to(found[name].device), 0)


def _weights(model: nn.Module, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is here of each weight, by name in the bare model, inside whatever wrapper has the names."""
    weights = {}
    for weight in named_weights(model):
        if weight.tensor is not None:
            mine = local(weight.tensor.detach())
            weights[weight.name] = mine if weight.part is None else mine[weight.part]
    plain = {_without_adapters(name): tensor for name, tensor in weights.items()}
    found = {name: weights.get(name, plain.get(_without_adapters(name))) for name in names}
    for child in _AVERAGED:
        if any(weight is None for weight in found.values()) and child in model._modules:
            return _weights(model.get_submodule(child), names)
    return {name: weight for name, weight in found.items() if weight is not None}


def _without_adapters(name: str) -> str:
    """A layer's name once PEFT has merged its adapters into it."""
    return re.sub(r"\.(base_layer|modules_to_save\.\w+)(?=\.|$)", "", name.removeprefix("base_model.model."))

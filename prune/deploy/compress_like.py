"""A fresh module made ready for the `state_dict` of a compressed one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trisparse.prune.costs.fold_activations import fold_activations
from trisparse.prune.deploy.channel_spec import CHANNELS, with_channels
from trisparse.prune.deploy.layer_spec import (
    Spec,
    activations_of,
    empty_packed,
    is_of_kind,
    is_packed,
    kind_of,
    misfit,
    shrunken,
)
from trisparse.prune.deploy.spec_check import check_entry
from trisparse.prune.errors import PruningError
from trisparse.prune.layers.modules import replace_module, unwrap
from trisparse.sparse_ops.convolutions.windows import geometry_of


@torch.inference_mode(False)  # in which new tensors could not take part in training any more
@torch.no_grad()
def compress_like(model: nn.Module, description: Spec) -> nn.Module:
    """Give a dense module the layers that a compressed one has, in place, for its `state_dict` to be loaded.

    For modules that transformers does not save: `describe(compressed)` is a dict of plain values for JSON or
    `torch.save`, to be kept beside `compressed.state_dict()`. Until that is loaded the layers' weights are zero.

    Args:
        model: made as the compressed one was, with layers of the same names and sizes; its device and dtype stay.
        description: what `describe` said.

    Returns:
        The module.

    Raises:
        PruningError: a description that is damaged or of another version, or one that does not fit; the module is as it
            was.
    """
    bare = unwrap(model)
    layers = check_entry(description, "description")
    modules = dict(bare.named_modules())
    for name, spec in layers.items():
        layer: Any = modules.get(name)
        if layer is None or not is_of_kind(spec, layer):
            kind = "no such layer" if layer is None else f"{type(layer).__name__}, not a dense {kind_of(spec)}"
            raise PruningError(f"description: layers: {name}: want the model as it was before compress, found {kind}")
        if any(tensor.is_meta for tensor in layer.state_dict().values()):
            raise PruningError(
                f"model: {name} is on the meta device; want one in memory, to_empty(device=...) makes it so"
            )
        if trouble := misfit(spec, layer):
            raise PruningError(f"description: layers: {name}: {trouble}")
    for name, spec in layers.items():
        empty = _empty(modules[name], spec)
        empty.training = modules[name].training
        replace_module(bare, name, empty)
    fold_activations(bare, activations_of(layers))
    return model


def _empty(layer: Any, spec: Spec) -> nn.Module:
    if spec["format"] == CHANNELS:
        return with_channels(layer, spec, next(iter(layer.state_dict().values())).device)
    device, dtype = layer.weight.device, layer.weight.dtype
    if is_packed(spec):
        return empty_packed(spec, device, dtype, geometry_of(layer) if "kernel" in spec else None)
    smaller = shrunken(layer, spec).to_empty(device=device)
    for parameter in smaller.parameters():
        parameter.zero_()
    return smaller

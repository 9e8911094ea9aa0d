"""Layers with fewer channels, and those with all of them again."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trisparse.prune.errors import PruningError
from trisparse.prune.layers.modules import is_hf_conv1d, op_type

_FILLINGS = {"weight": 0.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}  # of a zero channel


def rows_of(layer: Any) -> Tensor:
    """A weight with outputs first and inputs, if there are any, second."""
    return layer.weight.t() if is_hf_conv1d(layer) else layer.weight


def keep(layer: Any, index: Tensor, side: str, parts: int) -> None:
    """Keep these outputs (`out`) or inputs (`in`) of a layer, or channels (`all`) of one that takes each by itself.

    The layer notes its full size, and in how many parts what is left of it lies, for `restored`.
    """
    linear, dim = op_type(layer) == "Linear", int(side == "in")
    if not hasattr(layer, "full_shape" if linear else "full_channels"):
        sized: Any = layer.running_mean if isinstance(layer, _BatchNorm) else rows_of(layer)
        setattr(layer, "full_shape" if linear else "full_channels", tuple(sized.shape[:2]))
    split = list(getattr(layer, "parts", (1, 1)))
    split[dim] = parts
    layer.parts = tuple(split)
    for name in ("weight",) if side == "in" else _FILLINGS:
        if (tensor := getattr(layer, name, None)) is not None:
            axis = 1 - dim if name == "weight" and is_hf_conv1d(layer) else dim
            _set(layer, name, tensor.index_select(axis, index.to(tensor.device)))
    _note_sizes(layer, side == "all")


def restored(layer: Any) -> Any:
    """A convolution, batch norm or PReLU with all channels, removed ones as zeros at the end of each part."""
    full, parts, layer = layer.full_channels, layer.parts, copy.deepcopy(layer)
    del layer.full_channels, layer.parts
    for name, filling in _FILLINGS.items():
        tensor = getattr(layer, name, None)
        if tensor is None:
            continue
        tensor = padded(tensor.detach(), 0, full[0], parts[0], filling)
        if tensor.dim() > 1:
            tensor = padded(tensor, 1, full[1], parts[1])
        _set(layer, name, tensor)
    _note_sizes(layer, getattr(layer, "groups", 1) > 1)
    return layer


def padded(tensor: Tensor, dim: int, size: int, parts: int, filling: float = 0.0) -> Tensor:
    """The tensor with `size` along `dim`, where each of its equal parts gets the same number of fillings at its end."""
    more = (size - tensor.shape[dim]) // parts
    split = tensor.unflatten(dim, (parts, -1))
    shape = [*split.shape[: dim + 1], more, *split.shape[dim + 2 :]]
    return torch.cat([split, split.new_full(shape, filling)], dim + 1).flatten(dim, dim + 1)


def check_savable(model: nn.Module) -> None:
    """PruningError for a model of transformers with layers that its checkpoints can't describe."""
    for name, layer in model.named_modules():
        if hasattr(layer, "full_channels"):
            raise PruningError(
                f"{name}: a {type(layer).__name__} without its zero channels can't be saved yet; call "
                "decompress(model) before, or save state_dict()"
            )


def _set(layer: Any, name: str, tensor: Tensor) -> None:
    old = layer._parameters.get(name)
    setattr(layer, name, tensor if old is None else nn.Parameter(tensor, old.requires_grad))


def _note_sizes(layer: Any, is_channelwise: bool) -> None:
    weight = rows_of(layer)
    if is_hf_conv1d(layer):
        layer.nf, layer.nx = weight.shape
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif op_type(layer) == "Conv":
        layer.out_channels, layer.in_channels = weight.shape[:2]
        if is_channelwise:
            layer.in_channels = layer.groups = len(weight)
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = len(weight)
    else:
        layer.num_features = len(layer.running_mean)

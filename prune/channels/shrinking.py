"""Layers with fewer channels, and those with all of them again."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trisparse.prune.layers.modules import is_hf_conv1d, op_type

FILLINGS = {"weight": 0.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}  # of a zero channel


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
        _note_groups(layer)
    split = list(getattr(layer, "parts", (1, 1)))
    split[dim] = parts
    layer.parts = tuple(split)
    for name in ("weight",) if side == "in" else FILLINGS:
        if (tensor := getattr(layer, name, None)) is not None:
            axis = 1 - dim if name == "weight" and is_hf_conv1d(layer) else dim
            _set(layer, name, tensor.index_select(axis, index.to(tensor.device)))
    _note_sizes(layer)


def restored(layer: Any) -> Any:
    """A convolution, batch norm or PReLU with all channels, removed ones as zeros at the end of each part."""
    full, parts, layer = layer.full_channels, layer.parts, copy.deepcopy(layer)
    del layer.full_channels, layer.parts
    for name, filling in FILLINGS.items():
        tensor = getattr(layer, name, None)
        if tensor is None:
            continue
        tensor = padded(tensor.detach(), 0, full[0], parts[0], filling)
        if tensor.dim() > 1:
            tensor = padded(tensor, 1, full[1], parts[1])
        _set(layer, name, tensor)
    _note_sizes(layer)
    layer.__dict__.pop("full_groups", None)
    return layer


def padded(tensor: Tensor, dim: int, size: int, parts: int, filling: float = 0.0) -> Tensor:
    """The tensor with `size` along `dim`, where each of its equal parts gets the same number of fillings at its end."""
    more = (size - tensor.shape[dim]) // parts
    split = tensor.unflatten(dim, (parts, -1))
    shape = [*split.shape[: dim + 1], more, *split.shape[dim + 2 :]]
    return torch.cat([split, split.new_full(shape, filling)], dim + 1).flatten(dim, dim + 1)


def set_sizes(
    layer: Any, sizes: Mapping[str, Sequence[int]], full: tuple[int, ...], parts: tuple[int, ...], device: torch.device
) -> None:
    """Make a whole convolution, batch norm or PReLU one that lost channels, in place, of zeros for now.

    Args:
        layer: as its model makes it.
        sizes: name -> shape of the tensors that are left.
        full: channels that it has; of a convolution `(out, in)`, the latter by group.
        parts: in how many parts what is left lies, of outputs and of inputs.
        device: of the new tensors; dtypes stay.
    """
    layer.full_channels, layer.parts = full, parts
    _note_groups(layer)
    for name, shape in sizes.items():
        _set(layer, name, torch.zeros(tuple(shape), dtype=getattr(layer, name).dtype, device=device))
    _note_sizes(layer)


def _set(layer: Any, name: str, tensor: Tensor) -> None:
    old = layer._parameters.get(name)
    setattr(layer, name, tensor if old is None else nn.Parameter(tensor, old.requires_grad))


def _note_groups(layer: Any) -> None:
    if op_type(layer) == "Conv":  # one that is cut to a single channel has one group, as others do
        layer.full_groups = layer.groups


def _note_sizes(layer: Any) -> None:
    weight = rows_of(layer)
    if is_hf_conv1d(layer):
        layer.nf, layer.nx = weight.shape
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif op_type(layer) == "Conv":
        layer.out_channels, layer.in_channels = weight.shape[:2]
        if layer.full_groups > 1:
            layer.in_channels = layer.groups = len(weight)
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = len(weight)
    else:
        layer.num_features = len(layer.running_mean)

"""Convolutions, batch norms and PReLUs without their zero channels, as a checkpoint's config describes them.

Their spec has format "channels", the sizes of the tensors that are left, and the layer's full channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from trisparse.prune.channels.shrinking import FILLINGS, set_sizes
from trisparse.prune.layers.modules import op_type

CHANNELS = "channels"
KINDS = "convolution, batch norm or PReLU"
_LIMIT = 1 << 31  # rows, columns and slots are counted in int32
_FIELDS = {"format", "tensors", "full_channels"}


def spec_of_channels(layer: Any) -> dict[str, Any]:
    """Of a layer that lost some."""
    tensors = {name: list(tensor.shape) for name, tensor in _tensors(layer).items()}
    spec = {"format": CHANNELS, "tensors": tensors, "full_channels": list(layer.full_channels)}
    return spec if layer.parts == (1, 1) else {**spec, "parts": list(layer.parts)}


def full_tensors(spec: Mapping[str, Any]) -> dict[str, list[int]]:
    """Name -> shape of the tensors with all channels."""
    full = spec["full_channels"]
    return {name: [*full[: len(shape)], *shape[len(full) :]] for name, shape in spec["tensors"].items()}


def is_of_channels(layer: nn.Module) -> bool:
    """Whether a spec of channels may be of such a layer."""
    return op_type(layer) == "Conv" or isinstance(layer, (_BatchNorm, nn.PReLU))


def misfit_of_channels(spec: Mapping[str, Any], layer: nn.Module) -> str:
    """What of a spec is not as in the layer that a model makes, or an empty string."""
    own, full = {name: list(tensor.shape) for name, tensor in _tensors(layer).items()}, full_tensors(spec)
    if own != full:
        return f"tensors: want {own} with all channels, as the model has them, got {full}"
    return ""


def with_channels(layer: nn.Module, spec: Mapping[str, Any], device: torch.device) -> nn.Module:
    """A layer as its model makes it, in place, of the sizes of a spec and of zeros, for a state_dict to be loaded."""
    set_sizes(layer, spec["tensors"], tuple(spec["full_channels"]), tuple(spec.get("parts", (1, 1))), device)
    return layer


def trouble_of_channels(spec: Mapping[str, Any]) -> str:
    """The first field of what claims to be such a spec that is wrong, or an empty string."""
    fields = _FIELDS | ({"parts"} & spec.keys())
    if spec.keys() != fields:
        return f"want the fields {', '.join(sorted(fields))}, got {', '.join(map(str, spec))}"
    tensors, full, parts = spec["tensors"], spec["full_channels"], spec.get("parts", [1, 1])
    if not _are_sizes(full, 1, 2):
        return f"full_channels: got {full!r:.60}"
    if not _are_sizes(parts, 2, 2) or 0 in parts:
        return f"parts: got {parts!r:.60}"
    if not isinstance(tensors, dict) or not tensors or not tensors.keys() <= FILLINGS.keys():
        return f"tensors: want {', '.join(FILLINGS)}, or some of them, got {tensors!r:.60}"
    for name, shape in tensors.items():
        if not _are_sizes(shape, 1, 5):
            return f"tensors: {name}: got {shape!r:.60}"
        for size, whole, part in zip(shape, full, parts, strict=False):
            if size > whole or size % part or whole % part:
                return f"tensors: {name}: want at most {full}, in parts of {parts}, got {shape}"
    if len({shape[0] for shape in tensors.values()}) > 1:
        return f"tensors: want as many channels of each, got {tensors!r:.100}"
    return ""


def is_size(value: Any) -> bool:
    """Whether this is a number of rows or the like that a spec may have."""
    return type(value) is int and 0 <= value < _LIMIT


def _tensors(layer: Any) -> dict[str, torch.Tensor]:
    return {name: tensor for name in FILLINGS if (tensor := getattr(layer, name, None)) is not None}


def _are_sizes(value: Any, least: int, most: int) -> bool:
    is_list = isinstance(value, (list, tuple)) and least <= len(value) <= most
    return is_list and all(map(is_size, value))

"""What layers with weights do with channels: which they read, which they make, and which pass one by one."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trisparse.prune.channels.channel_rules import Channels, Stays
from trisparse.prune.channels.shrinking import rows_of
from trisparse.prune.layers.modules import op_type


class Read(NamedTuple):
    """Which columns of a layer read constants, `[columns]` bool, and what these are."""

    fixed: Tensor
    values: Tensor


def is_known(module: nn.Module) -> bool:
    """Whether this is a layer whose own operators need not be looked at."""
    is_layer = op_type(module) is not None or isinstance(module, (_BatchNorm, nn.PReLU))
    return is_layer and not list(module.children())


def sides_of(layer: Any) -> dict[str, int]:
    """Sides of a layer, `out` and `in`, or `all` where channels pass one by one, and their numbers of channels."""
    if isinstance(layer, _BatchNorm):
        return {"all": layer.num_features}
    if isinstance(layer, nn.PReLU):
        return {"all": layer.num_parameters} if layer.num_parameters > 1 else {}
    weight = rows_of(layer)
    if op_type(layer) == "Conv" and layer.groups > 1:
        is_channelwise = layer.groups == layer.in_channels == layer.out_channels
        return {"all": len(weight)} if is_channelwise else {"in": layer.in_channels, "out": len(weight)}
    return {"in": weight.shape[1], "out": len(weight)}


def through(
    layer: Any, source: Tensor, channels: Channels | None, ids: dict[str, Tensor]
) -> tuple[Read | None, Channels | None]:
    """What a layer reads of the channels of its input, and the channels of its output.

    Raises:
        Stays: it needs all of them.
    """
    dim = source.dim() - 1 if op_type(layer) == "Linear" else 1 if source.dim() > 1 else 0
    if op_type(layer) == "Conv":
        dim = source.dim() - len(layer.kernel_size) - 1
    if channels is not None and channels.dim != dim:
        raise Stays("{where} reads them along another axis")
    if isinstance(layer, (_BatchNorm, nn.PReLU)):
        return None, None if channels is None else _pass_one_by_one(layer, channels)
    weight = rows_of(layer)
    if op_type(layer) == "Conv" and layer.groups > 1:
        if "all" not in ids:
            raise Stays("{where} reads them in groups")
        return None, None if channels is None else _convolve_one_by_one(layer, channels)
    read = None if channels is None else _read(layer, channels)
    if len(weight) < 2:  # where one lies can't be told from its index
        return read, None
    return read, Channels(dim, ids["out"].to(weight.device), *_constants(layer, read))


def _read(layer: Any, channels: Channels) -> Read:
    """A padded convolution sees zeros beside a constant."""
    fixed = channels.fixed & channels.values.isfinite()
    if op_type(layer) == "Conv" and _pads_with_zeros(layer):
        fixed = fixed & (channels.values == 0)
    return Read(fixed, torch.where(fixed, channels.values, 0))


def _constants(layer: Any, read: Read | None) -> tuple[Tensor, Tensor]:
    """Which outputs come from constants alone, and their values."""
    weight = rows_of(layer)
    values = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().clone()
    taps = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
    if read is None:
        return (weight == 0).flatten(1).all(1), values
    varies = ((weight != 0).flatten(2).any(2) if weight.dim() > 2 else weight != 0) & ~read.fixed
    return ~varies.any(1), values + taps @ read.values.to(taps.dtype)


def _convolve_one_by_one(layer: Any, channels: Channels) -> Channels:
    weight = layer.weight.flatten(1)
    read = _read(layer, channels)
    values = weight.sum(1) * read.values.to(weight.dtype) + (0 if layer.bias is None else layer.bias)
    return channels._replace(fixed=read.fixed | (weight == 0).all(1), values=values)


def _pass_one_by_one(layer: Any, channels: Channels) -> Channels:
    if isinstance(layer, nn.PReLU):
        return channels._replace(values=nn.functional.prelu(channels.values[None], layer.weight)[0])
    if layer.running_mean is None or layer.training:
        raise Stays("{where} takes means over the batch and reads them")
    values = torch.where(channels.fixed, channels.values, 0)[None]
    stats = layer.running_mean, layer.running_var, layer.weight, layer.bias
    fixed = channels.fixed if layer.weight is None else channels.fixed | (layer.weight == 0)
    return channels._replace(fixed=fixed, values=nn.functional.batch_norm(values, *stats, False, 0.0, layer.eps)[0])


def _pads_with_zeros(layer: Any) -> bool:
    padding = layer.padding
    is_padded = padding == "same" if isinstance(padding, str) else any(padding)
    return is_padded and layer.padding_mode == "zeros"

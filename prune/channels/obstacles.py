"""Why a layer must stay as it is: what neither a smaller nor a packed layer would do as it did."""

from __future__ import annotations

import torch
from torch import nn

from trisparse.prune.errors import PruningError
from trisparse.prune.layers.foreign import PACKED, foreign_weight
from trisparse.prune.layers.modules import interference, is_hf_conv1d
from trisparse.sparse_ops import LinearMasked
from trisparse.sparse_ops.checks import DTYPES

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_PLAIN = (nn.Linear, LinearMasked, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_NORMS, nn.PReLU)


def obstacle(layer: nn.Module) -> str:
    """Why a layer can't be replaced or made smaller, or an empty string."""
    if reason := interference(layer):
        return reason
    kind = type(layer)
    if kind not in _PLAIN and not (is_hf_conv1d(layer) and kind.__module__.startswith("transformers.")):
        plain = next((base.__name__ for base in kind.__mro__ if base in _PLAIN), nn.Linear.__name__)
        return f"it is a {kind.__name__}, not nn.{plain} itself"
    may_lack = ("weight", "bias") if isinstance(layer, nn.modules.batchnorm._BatchNorm) else ("bias",)
    for name in ("weight", "bias") if kind is not nn.PReLU else ("weight",):
        parameter = layer._parameters.get(name, layer)  # pruned or parametrized ones are no entry
        if type(parameter) is not nn.Parameter and not (name in may_lack and parameter is None):
            return f"its {name} is no plain parameter"
    if more := _more(layer):
        return f"it holds {more} besides its weight and bias"
    weight = layer._parameters["weight"]
    return "" if weight is None or weight.dtype in DTYPES else f"its weight is {weight.dtype}"


def _more(layer: nn.Module) -> str:
    """A parameter, buffer or module that somebody put into a layer and that another in its place would not hold."""
    own = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    held = (*layer._parameters, *layer._buffers, *layer._modules)
    return next((name for name in held if name not in own), "")


def check_numbers(model: nn.Module, prefix: str = "") -> None:
    """PruningError for weights that are not in memory, not as plain dense tensors, or quantized by another library."""
    for name, module in model.named_modules():
        if not isinstance(module, PACKED) and (reason := foreign_weight(module)):
            raise PruningError(f"{prefix}{name or 'model'}: {reason}")
    for name, parameter in model.named_parameters():
        if parameter.layout != torch.strided:
            raise PruningError(f"{prefix}{name}: is {parameter.layout}; want a dense tensor, call to_dense() on it")
        if parameter.is_meta or isinstance(parameter, nn.parameter.UninitializedParameter):
            raise PruningError(
                f"{prefix}{name}: holds no numbers (it is on the meta device, offloaded or uninitialized); load the "
                "whole model into memory"
            )

"""Why a layer must stay as it is: what neither a smaller nor a packed layer would do as it did."""

from __future__ import annotations

import torch
from torch import nn

from trisparse.prune.errors import PruningError
from trisparse.prune.pruner.layers import is_hf_conv1d
from trisparse.sparse_ops.checks import DTYPES

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def obstacle(layer: nn.Module) -> str:
    """Why a linear layer can't be replaced or made smaller, or an empty string."""
    if reason := interference(layer):
        return reason
    kind = type(layer)
    if kind is not nn.Linear and not (is_hf_conv1d(layer) and kind.__module__.startswith("transformers.")):
        return f"it is a {kind.__name__}, not nn.Linear itself"
    for name in ("weight", "bias"):
        parameter = layer._parameters.get(name, layer)  # pruned or parametrized ones are no entry
        if type(parameter) is not nn.Parameter and not (name == "bias" and parameter is None):
            return f"its {name} is no plain parameter"
    dtype = layer.get_parameter("weight").dtype
    return "" if dtype in DTYPES else f"its weight is {dtype}"


def interference(module: nn.Module) -> str:
    """What makes a module do other than its class says, or an empty string."""
    if any(getattr(module, name) for name in _HOOKS):
        return "it has hooks"
    return "its forward was replaced" if "forward" in vars(module) else ""


def check_numbers(model: nn.Module, prefix: str = "") -> None:
    """PruningError for weights that are not in memory, or not as plain dense tensors."""
    for name, parameter in model.named_parameters():
        if parameter.layout != torch.strided:
            raise PruningError(f"{prefix}{name}: is {parameter.layout}; want a dense tensor, call to_dense() on it")
        if parameter.is_meta or isinstance(parameter, nn.parameter.UninitializedParameter):
            raise PruningError(
                f"{prefix}{name}: holds no numbers (it is on the meta device, offloaded or uninitialized); load the "
                "whole model into memory"
            )

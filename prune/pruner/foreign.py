"""Weights that are no plain tensors any more: packed here, or quantized by another library."""

from __future__ import annotations

import torch
from torch import nn

from trisparse.prune.pruner.shards import is_sharded
from trisparse.sparse_ops import Linear24, LinearBlocks

PACKED = (Linear24, LinearBlocks)
# what keeps the numbers of a quantized layer, under the names that GPTQ, AWQ, HQQ, FP8 and compressed-tensors have
_CODES = ("qweight", "W_q", "weight_packed", "weight_scale", "weight_scale_inv", "qzeros")
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def foreign_weight(module: nn.Module) -> str:
    """What the numbers of a module are that can't be pruned or packed, and what to do; an empty string if they can."""
    if isinstance(module, PACKED):
        return "is packed; call decompress(model) first"
    for parameter in module._parameters.values():
        if parameter is None or isinstance(parameter, nn.parameter.UninitializedParameter) or parameter.dim() < 2:
            continue
        kind = type(parameter)
        is_plain = kind is nn.Parameter or is_sharded(parameter)
        if not is_plain and not kind.__module__.startswith("torch."):
            return _quantized(f"its weight is a {kind.__name__} of {kind.__module__.split('.')[0]}")
        if parameter.dtype in _INTEGERS or "float8" in str(parameter.dtype) or "float4" in str(parameter.dtype):
            return _quantized(f"its weight is {parameter.dtype}")
    held = [name for name in _CODES if name in module._parameters or name in module._buffers]
    return _quantized(f"it is a {type(module).__name__}, which holds {held[0]}") if held else ""


def _quantized(what: str) -> str:
    return f"is quantized ({what}); prune first, then quantize"

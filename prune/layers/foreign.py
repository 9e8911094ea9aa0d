"""Weights that are no plain tensors any more: packed here, or quantized by another library."""

from __future__ import annotations

from torch import Tensor, nn

from trisparse.prune.layers.shards import is_sharded
from trisparse.sparse_ops import Linear24, LinearBlocks

PACKED = (Linear24, LinearBlocks)
# what keeps the numbers of a quantized layer, under the names that GPTQ, AWQ, HQQ and compressed-tensors have
_CODES = ("qweight", "W_q", "weight_packed", "qzeros")
_LOOKED_UP = (nn.Embedding, nn.EmbeddingBag)  # never pruned, whatever they hold


def foreign_weight(module: nn.Module) -> str:
    """What the numbers of a module are that can't be pruned or packed, and what to do; an empty string if they can."""
    if isinstance(module, PACKED):
        return "is packed; call decompress(model) first"
    if isinstance(module, _LOOKED_UP):
        return ""
    if type(module).__module__.startswith("torch.ao.nn.") and ".quantized" in type(module).__module__:
        return _quantized(f"it is a {type(module).__name__} of torch.ao")
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is None or not name.endswith("weight"):
            continue
        if isinstance(tensor, nn.parameter.UninitializedParameter) or tensor.dim() < 2:
            continue
        kind = type(tensor)
        is_plain = issubclass(kind, nn.Parameter) or kind is Tensor or is_sharded(tensor)
        if not is_plain and not kind.__module__.startswith("torch."):
            return _quantized(f"its weight is a {kind.__name__} of {kind.__module__.split('.')[0]}")
        is_code = not tensor.is_floating_point() and not tensor.is_complex()
        if is_code or "float8" in str(tensor.dtype) or "float4" in str(tensor.dtype):
            return _quantized(f"its weight is {tensor.dtype}")
    held = [name for name in _CODES if name in module._parameters or name in module._buffers]
    return _quantized(f"it is a {type(module).__name__}, which holds {held[0]}") if held else ""


def _quantized(what: str) -> str:
    return f"is quantized ({what}); prune first, then quantize"

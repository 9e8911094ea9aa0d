"""Compress a pruned model: channels removed, and each layer in the one format that suits it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trisparse.prune.chains import find_chains
from trisparse.prune.choose_format import Chooser
from trisparse.prune.compact import compact
from trisparse.prune.compression_report import CompressionReport
from trisparse.prune.errors import PruningError
from trisparse.prune.formats import unpack_layer
from trisparse.prune.layer_spec import note_in_config
from trisparse.prune.layers import is_hf_conv1d, replace_module, unwrap
from trisparse.sparse_ops import Linear24, LinearBlocks

PACKED = (Linear24, LinearBlocks)


@torch.no_grad()
def compress(
    model: nn.Module, prefer: str = "speed", tokens: Sequence[int] = (1, 4096), *, measure: bool = True,
    remove_channels: bool = True, example: Mapping[str, Any] | tuple | None = None, cache: Path | None = None,
) -> tuple[nn.Module, CompressionReport]:  # fmt: skip
    """Keep every linear layer in one format, chosen by the pattern of zeros in its weight; in place, for inference.

    First channels and heads that are zero are removed, as by `compact`. Then each layer stays dense or becomes packed
    2:4, column vectors or blocks; its dense weight is let go of. On a CPU packed layers save memory and never time,
    since they are unpacked to be multiplied.

    Args:
        model: pruned; shared weights, layers with hooks and all that is no linear layer stay as they are.
        prefer: `speed` keeps a packed format only if it is 3 % faster than dense over `tokens` and for none of them
            below 0.97 times as fast; `memory` keeps the smallest format, and the report says what that costs.
        tokens: numbers of tokens in a batch that matter.
        measure: time dense and packed on the model's device; otherwise a format has to promise a gain of 1.15 by a
            static model of a GPU. Times are remembered for this device and these versions.
        remove_channels: call `compact`.
        example: inputs that `compact` compares outputs with; a transformers model has its own.
        cache: folder of the times; `$TRISPARSE_CACHE` or `~/.cache/trisparse` unless given.

    Returns:
        The model, and what became of each layer.

    Raises:
        PruningError: an argument that is not among these, or a model with no linear layer.
    """
    if prefer not in ("speed", "memory"):
        raise PruningError(f"prefer: want 'speed' or 'memory', got {prefer!r}")
    tokens = list(tokens)
    if not tokens or any(not isinstance(t, int) or t < 1 for t in tokens):
        raise PruningError(f"tokens: want at least one number of tokens, each 1 or more, got {tokens}")
    bare = unwrap(model)
    before = {name: layer.weight.nbytes for name, layer in _linear_layers(bare)}
    if not before:
        raise PruningError("model: no linear layer that is not packed already")
    if "" in before:
        raise PruningError("model: is a single layer; put it into nn.Sequential")
    report = CompressionReport(prefer, bytes_before=model_bytes(bare))
    if remove_channels and find_chains(bare):
        report.channels = compact(bare, example)
    shared = _shared_weights(bare)
    chooser = Chooser(prefer, tokens, measure, cache)
    for name, layer in list(_linear_layers(bare)):
        row, packed = chooser.choose(name, layer, _obstacle(layer, shared))
        row.bytes_before = before[name]
        report.layers.append(row)
        if packed is not None:
            replace_module(bare, name, packed)
    report.bytes_after = model_bytes(bare)
    note_in_config(bare)
    return model, report


@torch.no_grad()
def decompress(model: nn.Module) -> nn.Module:
    """Make every layer dense again, in place, with channels that were removed back as zeros, at the end.

    Outputs stay the same. Where removing channels added a bias to a layer that had none, that bias stays.
    """
    bare = unwrap(model)
    for name, layer in list(bare.named_modules()):
        if isinstance(layer, PACKED) or hasattr(layer, "full_shape"):
            replace_module(bare, name, unpack_layer(layer))
    note_in_config(bare)
    return model


def model_bytes(model: nn.Module) -> int:
    """Of all parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def _linear_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if type(module) is nn.Linear or is_hf_conv1d(module):
            yield name, module


def _shared_weights(model: nn.Module) -> set[int]:
    """Weights that more than one module holds."""
    seen: set[int] = set()
    twice: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            (twice if id(parameter) in seen else seen).add(id(parameter))
    return twice


def _obstacle(layer: Any, shared: set[int]) -> str:
    """Why a layer must stay as it is, or an empty string."""
    if id(layer.weight) in shared:
        return "its weight is shared"
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
        return "it has hooks"
    return "" if layer.weight.is_floating_point() else f"its weight is {layer.weight.dtype}"

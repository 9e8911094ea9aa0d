"""Convolutions with channels last in memory, as packed ones read pictures without turning them over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trisparse.prune.channels.same_outputs import difference, outputs_of, run
from trisparse.prune.deploy.conv_inputs import ConvInput
from trisparse.prune.deploy.formats import formats_of, matrix_of
from trisparse.prune.errors import one_line
from trisparse.prune.speed import ratio_in_turns
from trisparse.sparse_ops.convolutions.packed_convs import is_channels_last

_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_AS_FAST = 0.8  # what has to be left of the dense model's speed, which packed layers gain back
_ROUNDS, _SECONDS = 7, 5.0


def turn_channels_last(model: nn.Module, example: Any, seen: Mapping[str, ConvInput]) -> tuple[list[str], str]:
    """Lay weights out with channels last, after which all that the model computes from pictures lies so.

    It stays as it was where no convolution that can be packed gets pictures with channels first, and where the model
    then fails, gives other outputs, or contiguous ones no longer so, or is slower than it may be while dense.

    Returns:
        The convolutions that were turned, none where it stays; and a line that tells why, where it could have been.
    """
    names = [name for name, layer in model.named_modules() if _can_be_turned(layer)]
    first = (name for name, given in seen.items() if len(given.shape) > 3 and not given.is_last)
    if not names or not any(formats_of(matrix_of(model.get_submodule(name))) for name in first):
        return [], ""
    try:
        before = outputs_of(model, example)
        turn(model, names, True)
        after = outputs_of(model, example)
        trouble = difference(before, after) or _strides(before, after) or _slower(model, example, names)
    except Exception as error:  # whatever a forward raises that counts on how its tensors lie
        trouble = one_line(error)
    turn(model, names, not trouble)
    return ([], f"channels stay first in memory: with channels last, {trouble}") if trouble else (names, "")


def turn(model: nn.Module, names: Sequence[str], is_last: bool) -> None:
    """Lay the weights of these convolutions out with channels last, or first; of those that are dense."""
    for layer in map(model.get_submodule, names):
        weight = layer._parameters.get("weight")
        if weight is not None:
            memory_format = _LAST[weight.dim()] if is_last else torch.contiguous_format
            weight.data = weight.data.contiguous(memory_format=memory_format)


def _can_be_turned(layer: nn.Module) -> bool:
    weight = layer._parameters.get("weight") if isinstance(layer, (nn.Conv2d, nn.Conv3d)) else None
    return weight is not None and not weight.is_inference() and not is_channels_last(weight)


def _strides(before: Sequence[Tensor], after: Sequence[Tensor]) -> str:
    is_other = any(a.is_contiguous() and not b.is_contiguous() for a, b in zip(before, after, strict=True))
    return "its outputs are not contiguous" if is_other else ""


def _slower(model: nn.Module, example: Any, names: Sequence[str]) -> str:
    """How much slower it is with channels last, if by more than packing is sure to gain."""

    def turned(is_last: bool) -> None:
        turn(model, names, is_last)  # nothing to do where it runs again
        run(model, example)

    device = next(model.parameters()).device
    gain = ratio_in_turns(partial(turned, False), partial(turned, True), device, _ROUNDS, _SECONDS)
    return "" if gain >= _AS_FAST else f"it is {gain:.2f} times as fast while dense"

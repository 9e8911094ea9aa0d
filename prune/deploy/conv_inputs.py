"""What convolutions are timed on: such pictures as reach them when the model runs on its example."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trisparse.prune.channels.same_outputs import run
from trisparse.prune.layers.modules import is_plain_conv
from trisparse.sparse_ops.convolutions.packed_convs import is_channels_last
from trisparse.sparse_ops.convolutions.windows import geometry_of


class ConvInput(NamedTuple):
    """The shape of an input, and whether its channels are the fastest in memory."""

    shape: tuple[int, ...]
    is_last: bool

    def positions(self, conv: Any) -> int:
        """How many outputs each filter has for it, over the batch."""
        return self.shape[0] * geometry_of(conv).positions(self.shape[2:])

    def draw(self, weight: Tensor) -> Tensor:
        """Random numbers in its place, of the weight's dtype and device."""
        generator = torch.Generator(weight.device).manual_seed(0)  # the caller's random numbers stay
        x = torch.randn(self.shape, generator=generator, dtype=torch.float32, device=weight.device).to(weight.dtype)
        return x.movedim(1, -1).contiguous().movedim(-1, 1) if self.is_last else x


def input_with(conv: Any, positions: int) -> ConvInput:
    """One picture that gives about so many positions, in memory as the weight lies."""
    return ConvInput((1, conv.weight.shape[1], *geometry_of(conv).sizes_for(positions)), is_channels_last(conv.weight))


def inputs_on(model: nn.Module, example: Any) -> Mapping[str, ConvInput]:
    """Name of each convolution without groups -> the largest batch that reaches it; nothing where it can't be run."""
    found: dict[str, ConvInput] = {}
    handles = []
    for name, module in model.named_modules():
        if is_plain_conv(module):

            def note(conv: Any, args: Any, name: str = name) -> None:
                x = args[0] if args else None
                if isinstance(x, Tensor) and x.dim() == conv.weight.dim():
                    seen = ConvInput(tuple(x.shape), is_channels_last(x))
                    found[name] = max(found.get(name, seen), seen, key=lambda one: math.prod(one.shape))

            handles.append(module.register_forward_pre_hook(note))
    try:
        if handles and example is not None:
            run(model, example)
    except Exception:  # whatever a forward raises that wants other inputs, which comparing outputs tells of
        found.clear()
    finally:
        for handle in handles:
            handle.remove()
    return found

"""The formats a linear layer or a convolution can be kept in, by the pattern that its weight shows."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trisparse.kernels.layouts_24 import packed_size
from trisparse.prune.channels.shrinking import padded, restored
from trisparse.prune.layers.modules import is_hf_conv1d, op_type
from trisparse.sparse_ops import Conv24, ConvBlocks, Linear24, LinearBlocks
from trisparse.sparse_ops.blocks.packed_blocks import HEIGHTS, LOWEST, SIDES, step_of
from trisparse.sparse_ops.convolutions.packed_convs import as_matrix, linear_of
from trisparse.sparse_ops.two_four.layout_24 import layout_24

_WORTH = 0.95  # of a dense weight's bytes; above it packing gains nothing
_HALF = (torch.float16, torch.bfloat16)


class Format(NamedTuple):
    """How a weight is kept.

    Attributes:
        kind: `dense`, `2:4`, `vectors` or `blocks`.
        block: of vectors and blocks, (1, 1) otherwise.
        run: rows of vectors that stay together when rows are grouped anew.
        stored: share of the weights that are stored.
        nbytes: of the packed weight; for rows grouped anew what it has at most.
    """

    kind: str
    block: tuple[int, int] = (1, 1)
    run: int = 1
    stored: float = 1.0
    nbytes: int = 0

    @property
    def is_regrouped(self) -> bool:
        """Whether rows are put together anew, so that only packing tells how much is stored."""
        return self.block[1] == 1 and self.run < self.block[0]

    def __str__(self) -> str:
        n, m = self.block
        if self.kind not in ("vectors", "blocks"):
            return self.kind
        return f"{n}x{m}" + (f" of {self.run}x1" if self.is_regrouped else "")


def matrix_of(layer: Any) -> Tensor:
    """A layer's weight as `[out, in]`, of a convolution `[out, kernel * in]`."""
    if op_type(layer) == "Conv":
        return as_matrix(layer.weight.detach())
    return (layer.weight.t() if is_hf_conv1d(layer) else layer.weight).detach()


def as_linear(layer: Any) -> nn.Linear:
    """The layer itself; transformers' `Conv1D`, and what a convolution does at each position, as an `nn.Linear`."""
    if op_type(layer) == "Conv":
        return linear_of(layer)
    if not is_hf_conv1d(layer):
        return layer
    weight = matrix_of(layer).contiguous()
    linear = nn.Linear(weight.shape[1], weight.shape[0], layer.bias is not None, "meta", weight.dtype)
    linear.weight = nn.Parameter(weight)
    linear.register_parameter("bias", layer.bias)
    return linear.train(layer.training)


def formats_of(weight: Tensor) -> list[Format]:
    """All packed formats that hold a weight in fewer bytes than dense, the smallest first.

    Vectors of N rows are taken as they lie where the weight is pruned in runs of N rows or more, and grouped anew
    from the longest runs it is pruned in where these are shorter.
    """
    size, cells = weight.element_size(), weight.numel()
    kept = weight != 0
    found = []
    fits_24 = cells and weight.shape[1] % 4 == 0 and (weight.dtype in _HALF or not weight.is_cuda)
    if fits_24 and bool((kept.unflatten(1, (-1, 4)).sum(-1) <= 2).all()):
        _, elements = packed_size(len(weight), weight.shape[1], layout_24(weight.device), size)
        found.append(Format("2:4", stored=0.5, nbytes=elements * size))
    blocks = {(n, m): _blocks(kept, n, m) for n, m in [*((n, 1) for n in HEIGHTS), *((n, n) for n in SIDES)]}
    share = {(n, m): float(found.sum()) * n * m / max(cells, 1) for (n, m), found in blocks.items()}
    whole = [n for n in HEIGHTS if share[n, 1] <= share[1, 1] * 1.02]
    run = max(whole, default=1)
    # as high as it is pruned in, or higher: what is lower, or is grouped anew from lower runs, has more to look up
    low = [n for n in HEIGHTS if n < LOWEST and n == run and not weight.is_cuda]
    for n, m in [*((n, 1) for n in HEIGHTS if n >= LOWEST or n in low), *((n, n) for n in SIDES)]:
        rows = min(run, n) if m == 1 else n
        nbytes = _packed_bytes(blocks[n, m], n, m, rows, size)
        found.append(Format("vectors" if m == 1 else "blocks", (n, m), rows, share[n, m], nbytes))
    return sorted((f for f in found if f.nbytes < _WORTH * cells * size), key=lambda f: f.nbytes)


def _blocks(kept: Tensor, n: int, m: int) -> Tensor:
    """bool `[rows / n, cols / m]`, both rounded up: the blocks with a weight that is not zero."""
    rows, cols = kept.shape
    high, wide = -(-rows // n), -(-cols // m)
    padded = nn.functional.pad(kept, (0, wide * m - cols, 0, high * n - rows))
    return padded.view(high, n, wide, m).any(3).any(1)


def _packed_bytes(blocks: Tensor, n: int, m: int, run: int, size: int) -> int:
    """Of values, columns, pointers and order, the slots of a group being filled up."""
    groups, step = len(blocks), step_of((n, m))
    slots = int(((blocks.sum(1) + step - 1) // step * step).sum())
    index = 2 if blocks.shape[1] < 1 << 15 else 4
    return slots * (n * m * size + index) + 4 * (groups + 1 + groups * n // run)


def pack_layer(layer: Any, form: Format) -> nn.Module:
    """A packed layer of a format; it remembers what `unpack_layer` needs."""
    is_24 = form.kind == "2:4"
    how: Any = {} if is_24 else {"block": form.block, "run": form.run}
    packed: Any
    if op_type(layer) == "Conv":
        packed = (Conv24 if is_24 else ConvBlocks).from_conv(layer, **how)
        rows, cols = getattr(layer, "full_channels", layer.weight.shape[:2])
        full = rows, cols * math.prod(layer.kernel_size)
    else:
        packed = (Linear24 if is_24 else LinearBlocks).from_linear(as_linear(layer), **how)
        full = getattr(layer, "full_shape", (packed.out_features, packed.in_features))
    packed.is_conv1d, packed.full_shape = is_hf_conv1d(layer), full
    packed.parts = getattr(layer, "parts", (1, 1))
    packed.training = layer.training
    return packed


def unpack_layer(layer: Any, full: bool = True) -> nn.Module:
    """The dense layer again, of its own kind and full size: channels that were removed are zeros at the end.

    At the end of each part, where units come in several: gates and what they open, say, in one projection. With `full`
    false they stay removed, and the layer remembers its full size.
    """
    if isinstance(layer, (Conv24, ConvBlocks)):
        return _unpack_conv(layer, full)
    linear: Any = layer.to_linear() if isinstance(layer, (Linear24, LinearBlocks)) else as_linear(layer)
    shape, parts = tuple(linear.weight.shape), getattr(layer, "parts", (1, 1))
    full_shape = tuple(getattr(layer, "full_shape", shape))
    rows, cols = full_shape if full else shape
    if (rows, cols) != shape or linear is layer:  # a new one in any case, which is as its model makes it
        weight = padded(padded(linear.weight.detach(), 0, rows, parts[0]), 1, cols, parts[1])
        bias = None if linear.bias is None else padded(linear.bias.detach(), 0, rows, parts[0])
        linear = nn.Linear(cols, rows, bias is not None, "meta", weight.dtype)
        linear.weight = nn.Parameter(weight)
        linear.register_parameter("bias", None if bias is None else nn.Parameter(bias))
    result: Any = linear
    if is_hf_conv1d(layer) or getattr(layer, "is_conv1d", False):
        from transformers.pytorch_utils import Conv1D

        result = Conv1D(rows, cols)
        result.weight = nn.Parameter(linear.weight.detach().t().contiguous())
        result.bias = linear.bias
    if (rows, cols) != full_shape:
        result.full_shape, result.parts = full_shape, parts
    return result.train(layer.training)


def _unpack_conv(layer: Any, full: bool) -> nn.Module:
    conv: Any = layer.to_conv()
    rows, cols = layer.full_shape
    if (rows, cols) == (layer.out_features, layer.in_features):
        return conv
    conv.full_channels, conv.parts, conv.full_groups = (rows, cols // math.prod(layer.kernel_size)), layer.parts, 1
    return restored(conv) if full else conv

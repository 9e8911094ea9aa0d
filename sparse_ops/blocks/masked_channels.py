"""A dense weight of which a mask keeps whole rows or whole columns: a smaller dense product is all there is to do."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear


class MaskedChannels(NamedTuple):
    """Which rows or columns a mask keeps.

    Attributes:
        shape: of the weight, `(rows, cols)`.
        dim: 0 if `channels` names rows, 1 if it names columns.
        channels: int64, in ascending order.
    """

    shape: tuple[int, int]
    dim: int
    channels: Tensor

    @property
    def density(self) -> float:
        """Share of the weights that is kept."""
        return len(self.channels) / max(self.shape[self.dim], 1)


def channel_dim(shape: tuple[int, int], block: tuple[int, int]) -> int | None:
    """0 if units of this block are whole rows of a weight of this shape, 1 if whole columns, None if neither."""
    return 0 if block[1] == shape[1] else 1 if block[0] == shape[0] else None


@torch.no_grad()
def masked_channels(mask: Tensor, block: tuple[int, int]) -> MaskedChannels:
    """Find the rows or columns that a mask keeps.

    Args:
        mask: bool, one for each unit of `block`, True = kept.
        block: rows and columns of a unit.

    Raises:
        ValueError: units are neither whole rows nor whole columns.
    """
    shape = mask.shape[0] * block[0], mask.shape[1] * block[1]
    dim = channel_dim(shape, block)
    if dim is None:
        raise ValueError(f"block: want whole rows or columns of {shape[0]} x {shape[1]}, got {block[0]} x {block[1]}")
    (channels,) = mask.flatten().repeat_interleave(block[dim]).nonzero(as_tuple=True)
    return MaskedChannels(shape, dim, channels)


def channel_linear(x: Tensor, weight: Tensor, bias: Tensor | None, kept: MaskedChannels) -> Tensor:
    """`x @ weight.T + bias` of `x` `[..., cols]`, as if what is not kept of the weight were zero.

    Of torch's own operators, so that gradients of every order and autocast are theirs; the gradient of the weight is
    zero where it is not kept.
    """
    own = weight.index_select(kept.dim, kept.channels)
    if kept.dim == 1:
        return linear(x.index_select(-1, kept.channels), own, bias)
    y = linear(x.reshape(-1, x.shape[-1]), own)
    whole = y.new_zeros(kept.shape[0]) if bias is None else bias.to(y.dtype)
    return whole.expand(len(y), -1).index_add(1, kept.channels, y).view(*x.shape[:-1], kept.shape[0])

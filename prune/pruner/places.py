"""A few places of a layer, always the same, that stand for all of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trisparse.sparse_ops.choosing.units import Block

_ACROSS = 8  # about as many rows and as many columns


class Places:
    """Units spread evenly over a grid, and one weight of each.

    Args:
        shape: of the unit view of what is here of a weight.
        grid: units down and across.
        block: weights of a unit down and across.
        device: of the weight.

    Attributes:
        units: index of the units in a tensor `[rows, cols]` of one value a unit.
        weights: index of the first weight of each in the unit view.
    """

    def __init__(self, shape: Sequence[int], grid: tuple[int, int], block: Block, device: torch.device) -> None:
        down, across = (np.arange(0, size, _odd(size // _ACROSS)) for size in grid)
        columns = np.unravel_index(across * block[1], shape[1:])
        rows = torch.from_numpy(down)[:, None].to(device)
        self.units = rows, torch.from_numpy(across).to(device)
        self.weights: tuple[Tensor, ...] = (rows * block[0], *(torch.from_numpy(c).to(device) for c in columns))


def _odd(stride: int) -> int:
    """So that the places do not all fall on the same weight of an M-group."""
    return max(stride, 1) | 1

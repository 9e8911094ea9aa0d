"""Group lasso."""

from typing import Any

from torch import Tensor

from trisparse.prune.errors import PruningError
from trisparse.sparse_ops.choosing.units import Block, expand_units, grid_shape


def shrink_units(view: Tensor, block: Block, amount: float) -> None:
    """W_b <- W_b * max(0, 1 - amount / norm(W_b)) for every unit b of a unit view, in place.

    The proximal step of a penalty on the units' norms, with amount = learning rate * coefficient.
    """
    n, m = block
    rows, cols = grid_shape(view, block)
    norm = view.float().reshape(rows, n, cols, m).pow(2).sum((1, 3)).sqrt()
    factor = (1 - amount / norm).clamp(min=0).nan_to_num(nan=0.0)
    view.mul_(expand_units(factor, block).view(view.shape))


def checked_rate(name: str, lr: Any) -> float:
    """The learning rate of a layer's weight; PruningError for an optimizer that has none, or finds its own."""
    if lr is None:
        raise PruningError(
            f"lr: reg_type: group_lasso needs a learning rate, and the optimizer has None for {name}; give it one "
            "(Adafactor: lr=... and relative_step=False), or leave out reg_type"
        )
    return float(lr)

"""Group lasso."""

from torch import Tensor

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

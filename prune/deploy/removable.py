"""Which units of a chain can go, and why others can't."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trisparse.prune.channels.chains import Chain, Side
from trisparse.prune.channels.shrinking import rows_of
from trisparse.sparse_ops.library import no_autocast


class Units(NamedTuple):
    """The units of a chain, on the CPU.

    Attributes:
        size: float, squares of all weights that make or read them.
        removable: bool.
        reason: why units stay that have zero rows, or of which all that is read is constant; or an empty string.
    """

    size: Tensor
    removable: Tensor
    reason: str


def removable_units(model: nn.Module, chain: Chain) -> Units:
    """A unit can go if everything that reads it reads zeros, or, where a bias can take it, what is always the same."""
    size, given = torch.zeros(2, chain.units, dtype=torch.float32, device="cpu")
    zero, even, can = (torch.full((chain.units,), flag, device="cpu") for flag in (False, True, True))
    lacking = []
    for side in chain.sides:
        layer: Any = model.get_submodule(side.layer)
        cells = channels_of(layer, side)
        size.index_add_(0, side.unit, cells.float().square().sum(1).cpu())
        is_zero = (cells == 0).all(1).cpu()
        if side.kind == "in":
            fixed, values = constants_of(side)
            even &= _all(chain.units, side.unit, fixed | is_zero)
            if layer.bias is None:  # one added would be lost where only the model's own class is known
                fixed = fixed & (values == 0)
                lacking.append(side.layer)
            can &= _all(chain.units, side.unit, fixed | is_zero)
            continue
        zero[side.unit[is_zero]] |= side.kind == "out"
        for name in ("bias", "running_mean", "running_var"):
            if (numbers := getattr(layer, name, None)) is not None:
                given.index_add_(0, side.unit, numbers.float().cpu())
    finite = (size + given).isfinite()  # zero times infinity is not zero
    stuck, varying = int((even & ~can & finite).sum()), int((zero & ~even & finite).sum())
    reasons = [f"{stuck} stay: {', '.join(lacking)} has no bias to take what they always give"] if stuck else []
    if varying and not chain.is_heads:
        readers = ", ".join(side.layer for side in chain.readers)
        reasons.append(f"{varying} with zero rows stay: what {readers} reads of them is not always the same")
    if infinite := int((zero & ~finite).sum()):
        reasons.append(f"{infinite} with zero rows stay: they have numbers that are not finite")
    return Units(size, can & finite, "; ".join(reasons))


def channels_of(layer: Any, side: Side) -> Tensor:
    """What a layer's weight has for each row or column of a side, `[channels, …]`."""
    weight = layer.running_mean.new_ones(layer.num_features) if layer.weight is None else rows_of(layer)
    return (weight.transpose(0, 1) if side.kind == "in" else weight[:, None]).flatten(1)


def constants_of(side: Side) -> tuple[Tensor, Tensor]:
    """Which columns of a reader read constants, and these."""
    assert side.fixed is not None
    assert side.values is not None
    return side.fixed.cpu(), side.values.cpu()


def folded(layer: Any, side: Side, gone: Tensor) -> Tensor:
    """What units that go always add to the output of a layer that reads them."""
    fixed, values = constants_of(side)
    always = (gone[side.unit] & fixed).to(layer.weight.device)
    weight = rows_of(layer)
    taps = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
    with no_autocast(taps.device):
        return taps[:, always] @ values.to(taps)[always]


def _all(units: int, unit: Tensor, flags: Tensor) -> Tensor:
    """Units all of whose rows or columns have a flag."""
    return torch.ones(units, dtype=torch.bool, device="cpu").index_fill_(0, unit[~flags], False)

"""Integers that order like floats."""

import torch
from torch import Tensor

NAN_KEY = 0x7FFFFFFF
PRUNED_KEY = -0x80000000  # below the key of -inf
_INF_BITS = 0x7F800000


def sort_keys(values: Tensor) -> Tensor:
    """Map floats to int32 keys of the same order: -inf < ... < -0.0 == +0.0 < ... < inf < NaN.

    A non-negative IEEE-754 number orders like its bits; the bits of a negative one order backwards.
    The result may share the storage of `values`.
    """
    values = values.to(torch.float32).contiguous()
    bits = values.view(torch.int32)
    low, high = bits.aminmax() if bits.numel() else (bits.new_zeros(()),) * 2
    if low >= 0 and high <= _INF_BITS:  # what every criterion yields: the bits are the keys
        return bits
    values = values + 0.0  # -0.0 becomes +0.0
    bits = values.view(torch.int32)
    return (bits ^ (bits >> 31).bitwise_and_(0x7FFFFFFF)).masked_fill_(values.isnan(), NAN_KEY)


def unit_keys(scores: Tensor, kept: Tensor) -> Tensor:
    """Keys of units, int32 and flat: `PRUNED_KEY` where a unit is gone already."""
    keys = sort_keys(scores).view(-1)
    if kept.all():
        return keys
    # masked_fill in three vectorised passes: all ones, then PRUNED_KEY, where the unit is gone
    gone = kept.view(-1).view(torch.int8).sub(1).to(torch.int32)
    return (keys | gone).bitwise_xor_(gone.bitwise_and_(~PRUNED_KEY))

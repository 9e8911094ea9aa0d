"""Which pattern the zeros of a weight have."""

from torch import Tensor

BY_CHANCE = 0.01  # share of a weight's numbers below which zeros are no pattern
_HEIGHTS = (64, 32, 16, 8, 4, 2)  # of blocks, the highest that the zeros lie in is taken
_NM = ((1, 4), (2, 8), (1, 2), (2, 4), (4, 8))  # the sparsest, and of these the one with the smallest groups, is taken
_STRAY = 0.01  # share of the zeros that may lie outside a pattern's units
_MORE = 0.05  # share of further zeros that an N:M weight may have


def pattern_of(view: Tensor) -> tuple[str, int]:
    """The coarsest pattern whose units hold the zeros of `[out, taps, in]`, and how many they hold.

    `dense` without zeros, `1x1` for those that no unit holds.
    """
    zero = view == 0
    total = int(zero.sum())
    rows, _, cols = view.shape
    if not total:
        return "dense", 0
    least = total * (1 - _STRAY)
    for name, whole, can_tell in (
        ("1xchannel", zero.flatten(1).all(1), view[0].numel() > 1),
        ("channelx1", zero.all(1).all(0), rows > 1),
    ):
        count = int(whole.sum()) * (view.numel() // len(whole))
        if can_tell and count >= least:
            return name, count
    matrix = zero.flatten(1)
    wide = matrix.shape[1]
    for n in _HEIGHTS:
        for m in (n, 1) if n > 2 else (1,):
            if rows % n == 0 and wide % m == 0:
                units = matrix.view(rows // n, n, wide // m, m).all(3).all(1)
                if (count := int(units.sum()) * n * m) >= least:
                    return f"{n}x{m}", count
    for n, m in _NM:
        is_share = total <= view.numel() * (1 - n / m + _MORE)  # with more zeros a small matrix has it by chance
        if is_share and cols % m == 0 and int((~matrix).view(rows, wide // m, m).sum(2).max()) <= n:
            return f"{n}:{m}", total
    return "1x1", total

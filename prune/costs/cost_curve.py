"""What a layer costs by how many of its units are pruned, and how many each layer gives up to meet a budget.

Costs are whole numbers, shares of the dense model's in `WHOLE` parts, so that sums are the same everywhere and in any
order. A curve never rises. Which units go first is decided on its lower convex envelope: the unit with the least score
for the cost that it saves there. On the envelope the result is the best there is: no other choice that saves as much
has a smaller sum of scores, up to the last unit. (An exchange argument: savings of a layer fall from unit to unit, and
scores rise, so their ratio rises.) Where a curve lies above its envelope, a choice is greedy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

WHOLE = 1 << 40  # the dense model's cost
_INFINITE = int(np.array(np.inf).view(np.int64))


class CostCurve(NamedTuple):
    """Cost of a layer, linear between points.

    Attributes:
        units: pruned units at each point, rising from 0 to all.
        costs: whole numbers, never rising.
    """

    units: tuple[int, ...]
    costs: tuple[int, ...]

    @property
    def dense(self) -> int:
        return self.costs[0]

    def at(self, pruned: int) -> int:
        """Cost with so many units pruned, rounded down."""
        i = max(int(np.searchsorted(self.units, pruned, side="right")) - 1, 0)
        if i == len(self.units) - 1:
            return self.costs[-1]
        (a, b), (high, low) = self.units[i : i + 2], self.costs[i : i + 2]
        return high - (high - low) * (pruned - a) // (b - a)

    @property
    def envelope(self) -> CostCurve:
        """The greatest convex curve that lies nowhere above this one, through points of it."""
        points: list[tuple[int, int]] = []
        for u, c in zip(self.units, self.costs, strict=True):
            while len(points) > 1 and _is_above(points[-2], points[-1], (u, c)):
                points.pop()
            points.append((u, c))
        return CostCurve(*map(tuple, zip(*points, strict=True)))


def _is_above(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> bool:
    """Whether the middle point is not below the line from the first to the last."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])


def curve_of(points: Sequence[tuple[int, float]], total: float) -> CostCurve:
    """A curve from `(pruned units, cost)`, costs as parts of `total`; one that would rise stays where it was."""
    units, costs = zip(*sorted(points), strict=True)
    shares = np.minimum.accumulate(np.array(costs, dtype=np.float64)) / total
    return CostCurve(units, tuple(int(share * WHOLE) for share in shares))


class Offer(NamedTuple):
    """What one layer has to give up.

    Attributes:
        curve: its cost.
        scores: fp32, of units that are still kept, rising, none NaN; all the same where they only go together.
        pruned: units that are gone.
        low: units that are to be gone at least.
        high: units that may be gone at most.
    """

    curve: CostCurve
    scores: np.ndarray
    pruned: int
    low: int
    high: int


def units_to_prune(offers: Sequence[Offer], cost: int, is_final: bool) -> list[int]:
    """How many units of each layer are to be pruned, so that all layers together cost at most `cost`, if they can.

    Args:
        offers: of each layer.
        cost: whole number, of the layers alone.
        is_final: whether curves have to meet it, not their envelopes, which foresee what only later units save.

    Units go by score over saving, the lowest first; in a tie by the order of layers. Layers take `low` in any case.
    """
    envelopes = [offer.curve.envelope for offer in offers]
    measured = [offer.curve for offer in offers] if is_final else envelopes

    def total(counts: Sequence[int]) -> int:
        return sum(curve.at(count) for curve, count in zip(measured, counts, strict=True))

    def counts(threshold: int, is_open: bool = False) -> list[int]:
        """Units whose ratio is at most the number with these bits, or below it."""
        ratio = float(np.array(threshold).view(np.float64))
        return [_count(o, envelope, ratio, is_open) for o, envelope in zip(offers, envelopes, strict=True)]

    bits = _least(0, _INFINITE, lambda bits: total(counts(bits)) <= cost)
    chosen, most = counts(bits, True), counts(bits)
    for i, last in enumerate(most):
        if total(chosen) <= cost:
            break
        first = chosen[i]

        def is_enough(count: int, i: int = i) -> bool:
            return total([*chosen[:i], count, *chosen[i + 1 :]]) <= cost

        chosen[i] = _least(first, last, is_enough)
    return chosen


def _count(offer: Offer, envelope: CostCurve, ratio: float, is_open: bool) -> int:
    """Units whose score is at most ratio times what they save on the envelope, or below that."""
    count = max(offer.pruned, min(offer.low, offer.high))
    for i in range(len(envelope.units) - 1):
        begin, end = max(envelope.units[i], count), min(envelope.units[i + 1], offer.high)
        if begin >= end:
            continue
        saving = (envelope.costs[i] - envelope.costs[i + 1]) / (envelope.units[i + 1] - envelope.units[i])
        if not saving:
            break
        part = offer.scores[begin - offer.pruned : end - offer.pruned]
        count = begin + _lower(part, ratio * saving, is_open)
        if count < end:
            break
    return count


def _lower(scores: np.ndarray, bound: float, is_open: bool) -> int:
    """How many fp32 scores are at most a bound of fp64, or below it; numpy would copy all of them to compare."""
    with np.errstate(over="ignore"):  # beyond all fp32 is infinite
        nearest = np.float32(bound)
    if is_open:
        nearest = np.nextafter(nearest, np.float32(np.inf)) if float(nearest) < bound else nearest
        return int(np.searchsorted(scores, nearest, side="left"))
    nearest = np.nextafter(nearest, np.float32(-np.inf)) if float(nearest) > bound else nearest
    return int(np.searchsorted(scores, nearest, side="right"))


def _least(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The least number from `low` on for which something holds that stays true once it is; `high` if for none."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low

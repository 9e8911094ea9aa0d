"""Progressive pruning: the units of one event go in four parts, the cheapest weights first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trisparse.prune.layers.shards import Exchange
from trisparse.sparse_ops.choosing.units import Block, expand_units

PARTS = 4


class Parts:
    """The units that one event selected, in the order in which they go.

    Attributes:
        event_step: step of the event.
        layer, unit: int64 `[new units]`, by (score, layer, index); units of whole layers, on every process.
    """

    def __init__(self, event_step: int, layer: Tensor, unit: Tensor) -> None:
        self.event_step = event_step
        self.layer = layer
        self.unit = unit

    @classmethod
    def of_event(
        cls,
        event_step: int,
        scores: Sequence[Tensor],
        before: Sequence[Tensor],
        after: Sequence[Tensor],
        firsts: Sequence[int],
        exchange: Exchange,
    ) -> Parts:
        """Order the units that `after` prunes and `before` did not; `firsts` number those that are here."""
        units, costs, layers = [], [], []
        for i, (score, old, now, first) in enumerate(zip(scores, before, after, firsts, strict=True)):
            new = (old & ~now).flatten().nonzero()[:, 0]
            costs.append(exchange.concat(score.flatten()[new]).cpu())
            units.append(exchange.concat(new + first).cpu())
            layers.append(torch.full_like(units[-1], i))
        order = torch.argsort(torch.cat(costs), stable=True)
        return cls(event_step, torch.cat(layers)[order], torch.cat(units)[order])

    def due(self, step: int, frequency: int) -> int:
        """How many parts are gone at this step: part i goes at event + i * frequency // 4."""
        return sum(i * frequency // PARTS <= step - self.event_step for i in range(PARTS))

    def masks(self, due: int, units: Sequence[Tensor], blocks: Sequence[Block], firsts: Sequence[int]) -> list[Tensor]:
        """Masks per weight when `due` parts are gone; `units`, numbered from `firsts`, are the masks once all are."""
        sizes = torch.tensor([n * m for n, m in blocks], device="cpu")[self.layer]
        gone = torch.cumsum(sizes, 0)
        take = int(gone[-1]) * due // PARTS if len(gone) else 0
        whole = int(torch.searchsorted(gone, torch.tensor(take, device="cpu"), right=True))  # units that are gone whole
        masks = []
        for i, (mask, block, first) in enumerate(zip(units, blocks, firsts, strict=True)):
            shown = mask.clone()
            waiting = self.unit[whole:][self.layer[whole:] == i] - first
            here = waiting[(waiting >= 0) & (waiting < mask.numel())]
            shown.view(-1)[here.to(mask.device)] = True
            masks.append(expand_units(shown, block))
        if whole < len(gone):
            self._cut(masks, blocks, firsts, whole, take - (int(gone[whole - 1]) if whole else 0))
        return masks

    def _cut(self, masks: list[Tensor], blocks: Sequence[Block], firsts: Sequence[int], index: int, count: int) -> None:
        """Prune the first `count` weights of one unit, row by row, where it is here."""
        layer = int(self.layer[index])
        unit = int(self.unit[index]) - firsts[layer]
        mask, (n, m) = masks[layer], blocks[layer]
        if not 0 <= unit < mask.numel() // (n * m):
            return
        down, across = divmod(unit, mask.shape[1] // m)
        place = torch.arange(count, device=mask.device)
        mask[down * n + place // m, across * m + place % m] = False

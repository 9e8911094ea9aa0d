"""Progressive pruning: the units of one event go in four parts, the cheapest weights first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trisparse.sparse_ops.units import Block, expand_units

PARTS = 4


class Parts:
    """The units that one event selected, in the order in which they go.

    Attributes:
        event_step: step of the event.
        layer, unit: int64 `[new units]`, by (score, layer, index).
    """

    def __init__(self, event_step: int, layer: Tensor, unit: Tensor) -> None:
        self.event_step = event_step
        self.layer = layer
        self.unit = unit

    @classmethod
    def of_event(
        cls, event_step: int, scores: Sequence[Tensor], before: Sequence[Tensor], after: Sequence[Tensor]
    ) -> Parts:
        """Order the units that `after` prunes and `before` did not."""
        new = [(old & ~now).flatten().nonzero()[:, 0].cpu() for old, now in zip(before, after, strict=True)]
        score = torch.cat([s.flatten().cpu()[u] for s, u in zip(scores, new, strict=True)])
        layer = torch.cat([torch.full_like(u, i) for i, u in enumerate(new)])
        order = torch.argsort(score, stable=True)
        return cls(event_step, layer[order], torch.cat(new)[order])

    def due(self, step: int, frequency: int) -> int:
        """How many parts are gone at this step: part i goes at event + i * frequency // 4."""
        return sum(i * frequency // PARTS <= step - self.event_step for i in range(PARTS))

    def masks(self, due: int, units: Sequence[Tensor], blocks: Sequence[Block]) -> list[Tensor]:
        """Masks per weight when `due` parts are gone; `units` are the masks once all are."""
        sizes = torch.tensor([n * m for n, m in blocks])[self.layer]
        gone = torch.cumsum(sizes, 0)
        take = int(gone[-1]) * due // PARTS if len(gone) else 0
        whole = int(torch.searchsorted(gone, torch.tensor(take), right=True))  # units that are gone whole
        masks = []
        for i, (mask, block) in enumerate(zip(units, blocks, strict=True)):
            shown = mask.clone()
            waiting = self.unit[whole:][self.layer[whole:] == i].to(mask.device)
            shown.view(-1)[waiting] = True
            masks.append(expand_units(shown, block))
        if whole < len(gone):
            self._cut(masks, blocks, whole, take - (int(gone[whole - 1]) if whole else 0))
        return masks

    def _cut(self, masks: list[Tensor], blocks: Sequence[Block], index: int, count: int) -> None:
        """Prune the first `count` weights of one unit, row by row."""
        layer, unit = int(self.layer[index]), int(self.unit[index])
        mask, (n, m) = masks[layer], blocks[layer]
        down, across = divmod(unit, mask.shape[1] // m)
        place = torch.arange(count, device=mask.device)
        mask[down * n + place // m, across * m + place % m] = False

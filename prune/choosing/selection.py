"""How many units each layer may give up at an event, and which go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trisparse.prune.config.group import GroupConfig
from trisparse.sparse_ops import Plan, select_units
from trisparse.sparse_ops.choosing.select_sharded import select_units_sharded

_SLACK = 1e-9  # a bound such as 0.98 * 50 is meant as 49, not as 48.999...


class Selection:
    """Bounds and targets of a group's events, in tensors that stay where they are.

    `ask` writes what the next event wants; `run` reads it on the device. So one captured `run` serves all events.

    Args:
        config: of the group.
        sizes: weights that go with one unit of each layer.
        weights: weights of each layer.
        units: units of each layer, over all processes.
        device: of the scores and masks.
        shards: the processes that hold the layers' rows, if none holds all of them.
    """

    def __init__(
        self,
        config: GroupConfig,
        sizes: Sequence[int],
        weights: Sequence[int],
        units: Sequence[int],
        device: torch.device,
        shards: Any = None,
    ) -> None:
        self.config, self.shards = config, shards
        self.sizes, self.weights, self.units = list(sizes), list(weights), list(units)
        self.is_global = config.pruning_scope == "global"
        self._low, self._high = torch.zeros((2, len(self.sizes)), dtype=torch.int64, device=device)
        self._targets = torch.zeros(1 if self.is_global else len(self.sizes), dtype=torch.int64, device=device)

    def ask(self, sparsity: float) -> None:
        """The next `run` leaves this fraction of the weights zero."""
        c = self.config
        assert c.target_sparsity is not None
        low = self.units_of(c.min_sparsity_ratio_per_op * sparsity / c.target_sparsity)
        parts = [sum(self.weights)] if self.is_global else self.weights
        self._write(low, self.most_units(), [math.floor(sparsity * part + 0.5) for part in parts])

    def ask_units(self, counts: Sequence[int]) -> None:
        """The next `run` leaves so many units of each layer pruned."""
        removed = sum(count * size for count, size in zip(counts, self.sizes, strict=True))
        self._write(counts, counts, [removed])  # a budget is met by all layers of its groups together

    def _write(self, low: Sequence[int], high: Sequence[int], targets: Sequence[int]) -> None:
        for tensor, values in ((self._low, low), (self._high, high), (self._targets, targets)):
            host = torch.tensor(values, dtype=torch.int64, device="cpu")
            tensor.copy_(host if tensor.device.type == "cpu" else host.pin_memory(), non_blocking=True)

    def run(self, scores: Sequence[Tensor], masks: Sequence[Tensor], plan: Plan) -> None:
        """Prune in the unit masks, in place; what is pruned stays pruned."""
        wanted = (self._low, self._high, self._targets)
        if self.shards is None:
            select_units(scores, masks, self.sizes, *wanted, plan)
        else:
            select_units_sharded(scores, masks, self.sizes, *wanted, self.shards)

    def most_units(self) -> list[int]:
        """Units that each layer may give up at most."""
        return self.units_of(self.config.max_sparsity_ratio_per_op)

    def units_of(self, ratio: float) -> list[int]:
        """Units of each layer that hold this share of its weights."""
        return [
            min(math.floor(ratio * weights / size + _SLACK), units)
            for weights, size, units in zip(self.weights, self.sizes, self.units, strict=True)
        ]

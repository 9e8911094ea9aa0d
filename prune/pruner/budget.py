"""Groups of layers that share a budget: at each event they agree how many units every layer gives up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from trisparse.prune.config.budget import Budget
from trisparse.prune.costs.cost_curve import WHOLE, Offer, units_to_prune
from trisparse.prune.costs.cost_table import CostTable, calibrated, make_table
from trisparse.prune.errors import PruningError
from trisparse.prune.pruner.group import PrunedGroup

_TRIALS = 2  # copies that are timed: the second is pruned by what the first showed


class SharedBudget:
    """One budget, its groups, and what their layers cost.

    Args:
        model: that the costs are of.
        budget: what it asks for.
        groups: that share it.
        replicas: the processes that hold copies of the model; the first of them measures for all.
        example: keywords of a forward, to time the model with.
        is_measured: whether times may be measured; otherwise a static model stands in.

    Attributes:
        table: what layers cost.
        left: share of the dense model's cost that may be left.

    Raises:
        PruningError: layers whose costs are not known, or a budget out of reach.
    """

    def __init__(
        self, model: nn.Module, budget: Budget, groups: Sequence[PrunedGroup], replicas: Any, example: Any,
        is_measured: bool,
    ) -> None:  # fmt: skip
        self.budget, self.groups = budget, list(groups)
        if any(group.weights.is_sharded for group in groups):
            raise PruningError(
                f"{budget.key}: is for weights that are whole; fully_shard has spread these over processes"
            )
        if any(group.attentions for group in groups):
            raise PruningError(
                f"{budget.key}: costs of whole heads are not known; give mha a group with target_sparsity"
            )
        layers = {
            layer.name: (layer, units)
            for group in groups
            for layer, units in zip(group.layers, group.selection.units, strict=True)
        }

        def look() -> CostTable:
            self.take(make_table(model, budget, layers, example, is_measured))
            for _ in range(_TRIALS if budget.key == "target_speedup" and is_measured else 0):
                self.take(calibrated(model, budget, layers, self.table, self._foreseen(), example))
            return self.table

        self.take(_shared(look, replicas))
        self._check_reach()

    @torch.no_grad()
    def _foreseen(self) -> list[int]:
        """Units of each layer that would go now, by the size of weights: in the end they will be about as many."""
        offers = []
        for group in self.groups:
            for layer, units, high in zip(
                group.layers, group.selection.units, group.selection.most_units(), strict=True
            ):
                sizes = layer.view.detach().flatten(1).abs().float()
                n, m = layer.block
                cost = sizes.view(len(sizes) // n, n, -1, m).mean((1, 3)).flatten()
                kept = torch.ones(units, dtype=torch.bool, device=cost.device)
                offers.append(Offer(self.table.curves[layer.name], _rising(cost, kept, group.is_nm), 0, 0, high))
        return units_to_prune(offers, int(self.left * WHOLE) - self.table.rest, True)

    def take(self, table: CostTable) -> None:
        """Go by this table from now on."""
        self.table, self.left = table, self.budget.left(table.total)
        for group in self.groups:
            group.goal = 1 - self.left

    def _check_reach(self) -> None:
        least = self.table.rest + sum(
            self.table.curves[layer.name].at(high)
            for group in self.groups
            for layer, high in zip(group.layers, group.selection.most_units(), strict=True)
        )
        if least <= self.left * WHOLE:
            return
        key, total, rest = self.budget.key, self.table.total, self.table.rest / WHOLE
        best = (
            f"{WHOLE / least:.3g} times as fast"
            if key == "target_speedup"
            else f"{least / WHOLE:.3g} of the dense model's"
        )
        if key == "target_bytes" and self.budget.target > 1:
            best = f"{least * total / WHOLE:.0f} bytes"
        raise PruningError(
            f"{key}: {self.budget.target:g} is out of reach: {best} is the best with max_sparsity_ratio_per_op "
            f"{self.groups[0].config.max_sparsity_ratio_per_op:g}, as {rest:.0%} of the dense model's cost is no "
            "pruned layer's; ask for less, or prune more layers"
        )

    def ask(self, step: int) -> None:
        """If an event falls on this step, tell all groups how many units of each layer are to be gone after it."""
        saved = self.groups[0].sparsity(step)
        if saved is None:
            return
        is_final = saved == self.groups[0].goal
        offers = [offer for group in self.groups for offer in self._offers(group, saved)]
        gone = {layer.name for group in self.groups for layer in group.layers}
        rest = self.table.rest + sum(c.dense for name, c in self.table.curves.items() if name not in gone)
        counts = iter(units_to_prune(offers, int((1 - saved) * WHOLE) - rest, is_final))
        for group in self.groups:
            group.selection.ask_units([next(counts) for _ in group.layers])

    def _offers(self, group: PrunedGroup, saved: float) -> list[Offer]:
        c = group.config
        low = group.selection.units_of(c.min_sparsity_ratio_per_op * saved / group.goal)
        high, found = group.selection.most_units(), []
        for i, (layer, cost, mask) in enumerate(zip(group.layers, group.rank(), group.units, strict=True)):
            pruned = mask.numel() - int(mask.sum())
            found.append(
                Offer(self.table.curves[layer.name], _rising(cost, mask, group.is_nm), pruned, low[i], high[i])
            )
        return found

    def cost(self) -> float:
        """Share of the dense model's cost that is left by the masks."""
        left = WHOLE
        for group in self.groups:
            for layer, mask in zip(group.layers, group.units, strict=True):
                curve = self.table.curves[layer.name]
                left -= curve.dense - curve.at(mask.numel() - int(mask.sum()))
        return left / WHOLE

    def note(self) -> str:
        """What the masks promise now."""
        key, cost, total = self.budget.key, self.cost(), self.table.total
        if key == "target_speedup":
            tokens = ", ".join(map(str, self.budget.tokens))
            return f"{self.budget}: promised {1 / cost:.3g} times as fast as dense (tokens {tokens})"
        if key == "target_bytes":
            return f"{self.budget}: promised {cost * total:.0f} bytes, {cost:.3f} of the dense model's"
        return f"{self.budget}: {cost:.3f} of the multiplications of linear layers are left"


def shared_budgets(
    model: nn.Module, groups: Sequence[PrunedGroup], replicas: Any, example: Any, is_measured: bool
) -> list[SharedBudget]:
    """Every budget that groups name, once; the rest as in `SharedBudget`."""
    budgets = dict.fromkeys(group.config.budget for group in groups if group.config.budget is not None)
    return [
        SharedBudget(model, budget, [g for g in groups if g.config.budget == budget], replicas, example, is_measured)
        for budget in budgets
    ]


def _rising(cost: Tensor, mask: Tensor, together: bool) -> np.ndarray:
    """Scores of kept units, the lowest first; of units that gain together alone their mean for each."""
    kept = cost[mask].float().nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    if together:
        mean = kept.double().mean().float() if len(kept) else kept.sum()
        return np.broadcast_to(mean.cpu().numpy(), len(kept))
    return np.sort(kept.cpu().numpy())  # in vectors, several times as fast as torch's


def _shared(make: Any, replicas: Any) -> CostTable:
    """The table of the first process, on all of them; what goes wrong there is told by all."""
    if replicas is None:
        return make()
    found: list[Any] = [None]
    if dist.get_rank(replicas) == 0:
        try:
            found = [make().to_state()]
        except PruningError as error:
            found = [str(error)]
    dist.broadcast_object_list(found, src=dist.get_global_rank(replicas, 0), group=replicas)
    if isinstance(found[0], str):
        raise PruningError(found[0])
    return CostTable.from_state(found[0])

"""The masks of one group of layers, and what happens to them at an event."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from trisparse.prune.choosing.heads import attentions_in, check_reach, head_scores, zero_biases
from trisparse.prune.choosing.lasso import shrink_units
from trisparse.prune.choosing.nm_groups import apart, best_and_costs
from trisparse.prune.choosing.progressive import PARTS, Parts
from trisparse.prune.choosing.selection import Selection
from trisparse.prune.config.group import GroupConfig
from trisparse.prune.config.own_parts import name_of
from trisparse.prune.config.schedules import event_at, sparsity_at
from trisparse.prune.errors import PruningError
from trisparse.prune.layers.layer import Layer
from trisparse.prune.layers.modules import exact
from trisparse.prune.layers.shards import local
from trisparse.prune.pruner.group_scores import EACH, GroupScores
from trisparse.prune.pruner.group_weights import GroupWeights
from trisparse.sparse_ops import apply_masks, thin_groups


class PrunedGroup:
    """Layers that are pruned together.

    Attributes:
        units: bool unit masks, True = kept; for N:M a kept group is one that is still dense.
        choices: for N:M the bool masks per weight, else empty.
        weights, scoring: of the layers, and what pruning them costs.
        parts: the event whose units are still going, for progressive pruning.
        attentions: numbers of the layers of each attention whose heads are the units, which share one mask.
        copies: number of a layer and a copy of its weight that an optimizer keeps, masked like the weight.
        is_stepped_here: by `step_adamw`, which scores and masks in the same pass.
        is_masked: with the masks in force, by `step_adamw`, and not written to since.
        left_out: names of layers that nobody named and no gradient reached, found at the first event that prunes.
    """

    def __init__(self, config: GroupConfig, layers: Sequence[Layer]) -> None:
        self.config = config
        self.found = list(layers)
        self.goal = config.target_sparsity or 0.0  # under a budget the share of the cost that goes, which it sets
        self.is_stepped_here = False
        self.take(layers)
        if self.attentions and not config.is_lock:
            heads = [self.layers[own[-1]] for own in self.attentions]
            names = [layer.attention or layer.name for layer in heads]
            check_reach(config, self.selection.sizes, [layer.grid[0] for layer in heads], names)
        if config.is_lock or config.lock_init_sparsity:
            self._lock()

    def take(self, layers: Sequence[Layer]) -> None:
        """Begin with these of the layers that were found, all of them dense."""
        self.weights = weights = GroupWeights(layers)
        self.scoring = GroupScores(self.config, weights)
        self.left_out = [layer.name for layer in self.found if layer not in weights.layers]
        self.is_nm = self.config.pattern.is_nm
        self.attentions = attentions_in(layers)
        self.units = weights.per_unit(True)
        self.choices = weights.per_weight(True) if self.is_nm else []
        self.parts: Parts | None = None
        sizes, units = weights.sizes, [layer.unit_rows.total * layer.grid[1] for layer in layers]
        counts = [layer.numel for layer in layers]
        if self.attentions:
            self._tie()
            sizes, counts = ([sum(some[i] for i in own) for own in self.attentions] for some in (sizes, counts))
            units = [units[own[-1]] - 1 for own in self.attentions]  # one of which may never go
        self.selection = Selection(self.config, sizes, counts, units, weights.device, weights.exchange.group)
        self._ranked: tuple[list[Tensor], list[Tensor]] | None = None  # what the next `prune` goes by
        self.is_masked = False
        self._shown: tuple[int, list[Tensor]] | None = None  # how many parts are due, and their masks
        self.copies: list[tuple[int, Tensor]] = []
        self.active = False

    @property
    def layers(self) -> list[Layer]:
        """Those whose units compete."""
        return self.weights.layers

    def _lock(self) -> None:
        """Take the masks from the weights: what is zero now is pruned."""
        for i, layer in enumerate(self.layers):
            nonzero = (layer.view.flatten(1) != 0).contiguous()
            rows, cols = layer.grid
            n, m = self.weights.blocks[i]
            alive = nonzero.view(rows, n, cols, m).sum((1, 3))
            self.units[i] = alive > (self.config.pattern.n if self.is_nm else 0)
            if self.is_nm:
                self.choices[i] = nonzero
        self._tie()
        self.active = True

    def _tie(self) -> None:
        """Give the layers of an attention one mask, of heads of which some layer keeps something."""
        for own in self.attentions:
            alive = torch.stack([self.units[i] for i in own]).any(0)
            for i in own:
                self.units[i] = alive

    def sparsity(self, step: int) -> float | None:
        """The sparsity that the event at this step asks for, or of a budget the share of the cost that goes.

        None without an event that prunes.
        """
        if self.config.is_lock:
            return None
        event = event_at(step, *self.config.window)
        if event is None:
            return None
        c = self.config
        return sparsity_at(c.sparsity_decay_type, self.goal, event, c.last_event) or None

    def observe(self, step: int, grad_scale: float) -> None:
        """Score the gradients of the optimizer step that will be number `step`."""
        c = self.config
        if not c.needs_gradient:
            return
        self.scoring.look_for_gradients()
        if c.keeps_scores:
            if step > self._last_event_step:
                return
        elif self.sparsity(step) is None:
            return
        self.scoring.observe(grad_scale, self.is_stepped_here)

    def step_adamw(self, rates: Mapping[int, list[float]], state: Mapping[Tensor, dict[str, Tensor]]) -> None:
        """Step the weights that have rates, by id; score them and mask them on the way if it is time for that."""
        steps = [id(weight) in rates for weight in self.weights.parameters]
        if any(steps):
            self.is_masked = self.active and self.parts is None and all(steps)
            masks = self.choices if self.is_nm else self.units
            self.scoring.step_adamw(rates, state, masks if self.is_masked else [])

    def fire(self, step: int) -> None:
        """Choose new masks if an event falls on this step, or move on with the parts of the last one."""
        c = self.config
        if c.is_lock:
            return
        sparsity = self.sparsity(step)
        if sparsity is not None:
            if c.budget is None:
                self.selection.ask(sparsity)
            before = [mask.clone() for mask in self.units] if c.is_progressive else []
            scores = self.prune()
            if c.is_progressive:
                first, exchange = self.weights.first_units, self.weights.exchange
                self.parts = Parts.of_event(step, scores, before, self.units, first, exchange)
                self._shown = None
            if step >= self._last_event_step:
                self.scoring.scores = []
        if self.parts and (step >= c.window[1] or self.parts.due(step, c.pruning_frequency) == PARTS):
            self.parts = None

    def rank(self) -> list[Tensor]:
        """What it costs now to prune each unit; what the next `prune` goes by. Work for the device only."""
        c, scores = self.config, self.scoring.costs()
        best: list[Tensor] = []
        if self.is_nm:
            locked = self.choices if c.lock_init_sparsity else None
            best, scores = best_and_costs(scores, locked, c.pattern.n, c.pattern.m, self.weights.plans)
        elif self.attentions:
            scores = head_scores(scores, self.weights.sizes, self.attentions, c)
        self._ranked = scores, best
        return scores

    def prune(self) -> list[Tensor]:
        """Choose masks as `selection` was asked to; work for the device only. Returns the costs it went by."""
        if self._ranked is None:
            self.rank()
        assert self._ranked is not None
        (costs, best), self._ranked = self._ranked, None
        plans = self.weights.plans
        if self.is_nm:
            before = apart([(mask.shape[0], mask.shape[1]) for mask in self.units], torch.bool, self.weights.device)
            torch._foreach_copy_(before, self.units)
            self.selection.run(costs, self.units, plans["select"])
            m = self.config.pattern.m
            thin_groups(self.choices, best, before, self.units, m, plans["thin"])  # once, when a group is pruned
        else:  # the layers of an attention share one mask
            units = [self.units[own[-1]] for own in self.attentions] or self.units
            self.selection.run(costs, units, plans["select"])
        self.active, self.is_masked = True, False
        return costs

    def check_scored(self, step: int) -> None:
        """Before an event at this step, leave out layers that nobody named and no gradient has ever reached.

        Processes that hold parts of the layers decide together; copies get the same gradients, and compare masks later.

        Raises:
            PruningError: the event would prune other layers that have no score.
        """
        if not self.config.needs_gradient or self.scoring.is_all_seen or self.sparsity(step) is None:
            return
        seen, reached = self.scoring.reached()
        for own in self.attentions:
            reached[own] = reached[own].all()  # heads go from all layers of an attention
        if self.config.names_all and bool(reached.any()):
            self._leave_out(reached.tolist())
            seen = seen[reached]
        missing = [layer.name for layer, is_seen in zip(self.layers, seen.tolist(), strict=True) if not is_seen]
        self.scoring.is_all_seen = not missing
        if missing:
            when = "up to now" if self.config.keeps_scores else "in this step, the one that it scores"
            raise PruningError(
                f"pruning_type: {name_of(self.config.pruning_type)} has no score for {', '.join(missing)}: no finite "
                f"gradient came {when}; add to excluded_op_names: {[exact(name) for name in missing]}"
            )

    def _leave_out(self, stays: Sequence[bool]) -> None:
        """Go on without some layers; nothing was pruned yet, but by a lock."""
        if all(stays):
            return
        units, choices, scoring, copies, active = self.units, self.choices, self.scoring, self.copies, self.active
        places = [i for i, is_here in enumerate(stays) if is_here]
        self.take([self.layers[i] for i in places])
        self.units = [units[i] for i in places]
        self.choices = [choices[i] for i in places] if choices else []
        self.scoring = scoring.of_some(places, self.weights)
        self.copies = [(places.index(i), tensor) for i, tensor in copies if i in places]
        self.active = active

    def masks_are_final(self, step: int) -> bool:
        """Whether no event and no part of one is still to come."""
        return self.config.is_lock or (step >= self._last_event_step and self.parts is None)

    @property
    def _last_event_step(self) -> int:
        start, _, frequency = self.config.window
        return start + self.config.last_event * frequency

    def write_masks(self, step: int) -> None:
        """Zero the pruned weights in place, and in their copies."""
        plans = self.weights.plans
        masks, blocks = self.masks(step) if self.active else ([], [])
        covers = "units" if masks is self.units else "weights"
        if self.active and not self.is_masked:
            apply_masks(self.weights.views, masks, blocks, plans[covers])
        if self.active and self.copies:
            own = [(self.layers[i], tensor) for i, tensor in self.copies]
            copies = [layer.unit_view(layer.own(local(tensor.detach()))) for layer, tensor in own]
            plan = plans[f"{len(copies)} copies, {covers}"]
            apply_masks(copies, [masks[i] for i, _ in self.copies], [blocks[i] for i, _ in self.copies], plan)
        if self.active and self.attentions:
            zero_biases(self.layers, self.units, plans["biases"])
        self.is_masked = False

    def masks(self, step: int) -> tuple[list[Tensor], list[tuple[int, int]]]:
        """The masks in force after this many steps, and the block that each of their values covers."""
        each = [EACH] * len(self.layers)
        if self.is_nm:
            return self.choices, each
        if self.parts is None:
            return self.units, self.weights.blocks
        due = self.parts.due(step, self.config.pruning_frequency)
        if self._shown is None or self._shown[0] != due:
            self._shown = due, self.parts.masks(due, self.units, self.weights.blocks, self.weights.first_units)
        return self._shown[1], each

    def shrink(self, step: int, lr_of: Callable[[Layer], float]) -> None:
        """Group lasso, from start to end."""
        c = self.config
        if c.reg_coeff is not None and c.window[0] <= step <= c.window[1]:
            for layer, view, block in zip(self.layers, self.weights.views, self.weights.blocks, strict=True):
                shrink_units(view, block, lr_of(layer) * c.reg_coeff)

    def forget_shown(self) -> None:
        """To be called when masks, scores or parts were set from outside."""
        self.scoring.is_all_seen = False
        self._shown = None

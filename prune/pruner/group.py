"""The state of one group of layers: scores, masks, and what happens to them at an event."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trisparse.kernels.tables import upload
from trisparse.prune.choosing.criteria import reduce_units, score_layers
from trisparse.prune.choosing.heads import attentions_in, check_reach, head_scores, zero_biases
from trisparse.prune.choosing.lasso import shrink_units
from trisparse.prune.choosing.mask_gradient import score_masks
from trisparse.prune.choosing.nm_groups import apart, best_and_costs
from trisparse.prune.choosing.progressive import PARTS, Parts
from trisparse.prune.choosing.selection import Selection
from trisparse.prune.config.group import GroupConfig
from trisparse.prune.config.own_parts import name_of
from trisparse.prune.config.schedules import event_at, sparsity_at
from trisparse.prune.errors import PruningError
from trisparse.prune.layers.layer import Layer
from trisparse.prune.layers.modules import exact
from trisparse.prune.layers.shards import Exchange, local
from trisparse.sparse_ops import Plan, apply_masks, masked_adamw, score_units, thin_groups
from trisparse.sparse_ops.choosing.score_units import CRITERIA
from trisparse.sparse_ops.choosing.units import matrix_shape

_EACH = (1, 1)  # the block of a mask with one value a weight


class PrunedGroup:
    """Scores and masks of the layers of one group.

    Attributes:
        units: bool unit masks, True = kept; for N:M a kept group is one that is still dense.
        choices: for N:M the bool masks per weight, else empty.
        scores: fp32 per unit, or per weight if `has_weight_scores`; empty while there is nothing to remember.
        parts: the event whose units are still going, for progressive pruning.
        attentions: numbers of the layers of each attention whose heads are the units, which share one mask.
        copies: number of a layer and a copy of its weight that an optimizer keeps, masked like the weight.
        is_sharded: whether each process holds rows of the weights.
        left_out: names of layers that nobody named and no gradient reached, found at the first event that prunes.
    """

    def __init__(self, config: GroupConfig, layers: Sequence[Layer]) -> None:
        self.config = config
        self.found = list(layers)
        self.goal = config.target_sparsity or 0.0  # under a budget the share of the cost that goes, which it sets
        self.is_stepped_here = False  # by `step_adamw`, which scores and masks in the same pass
        self.take(layers)
        if self.attentions and not config.is_lock:
            heads = [self.layers[own[-1]] for own in self.attentions]
            names = [layer.attention or layer.name for layer in heads]
            check_reach(config, self.selection.sizes, [layer.grid[0] for layer in heads], names)
        if config.is_lock or config.lock_init_sparsity:
            self._lock()

    def take(self, layers: Sequence[Layer]) -> None:
        """Begin with these of the layers that were found, all of them dense."""
        config = self.config
        self.layers = list(layers)
        self.left_out = [layer.name for layer in self.found if layer not in self.layers]
        self.blocks = [layer.block for layer in layers]
        self.sizes = [layer.unit_size for layer in layers]
        self.is_nm = config.pattern.is_nm
        self.attentions = attentions_in(layers)
        self.has_weight_scores = self.is_nm or config.keeps_weight_scores
        self.units = [_full(layer, layer.grid, True) for layer in layers]
        self.choices = [_full(layer, _matrix(layer), True) for layer in layers] if self.is_nm else []
        self.scores: list[Tensor] = []
        self.seen = torch.zeros(len(layers), dtype=torch.bool, device=_device(self.layers))
        self._is_reached = [False] * len(layers)  # by a gradient, or frozen and so not meant to be
        self._is_all_seen = False
        self.parts: Parts | None = None
        sizes, units = self.sizes, [layer.unit_rows.total * layer.grid[1] for layer in layers]
        weights = [layer.numel for layer in layers]
        if self.attentions:
            self._tie()
            sizes, weights = ([sum(some[i] for i in own) for own in self.attentions] for some in (sizes, weights))
            units = [units[own[-1]] - 1 for own in self.attentions]  # one of which may never go
        self.exchange = Exchange(_shard_group(self.layers))
        self.selection = Selection(config, sizes, weights, units, self.seen.device, self.exchange.group)
        self._weights = [layer.weight for layer in layers]
        self.is_sharded = any(layer.rows.group is not None for layer in layers)
        self._look()
        self._plans: defaultdict[str, Plan] = defaultdict(Plan)
        self._ranked: tuple[list[Tensor], list[Tensor]] | None = None  # what the next `prune` goes by
        self._due_scale: float | None = None  # of gradients that the next `step_adamw` is to score
        self._is_masked = False  # by that pass, with the masks in force
        self._shown: tuple[int, list[Tensor]] | None = None  # how many parts are due, and their masks
        self.copies: list[tuple[int, Tensor]] = []
        self.active = False

    def _lock(self) -> None:
        """Take the masks from the weights: what is zero now is pruned."""
        for i, layer in enumerate(self.layers):
            nonzero = (layer.view.flatten(1) != 0).contiguous()
            rows, cols = layer.grid
            n, m = self.blocks[i]
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

    @property
    def views(self) -> list[Tensor]:
        """The weights as units see them, also after `weight.data` was set to another tensor."""
        if self._addresses != self._current_addresses():
            self._look()
        return self._views

    def _current_addresses(self) -> list[int]:
        weights = [local(weight) for weight in self._weights] if self.is_sharded else self._weights
        return [weight.data_ptr() for weight in weights]

    def _look(self) -> None:
        self._views = [layer.view for layer in self.layers]
        self._addresses = self._current_addresses()

    @property
    def score_blocks(self) -> list[tuple[int, int]]:
        return [_EACH] * len(self.layers) if self.is_nm else self.blocks

    def new_scores(self) -> list[Tensor]:
        """Zeros, one for each unit, or for each weight if `has_weight_scores`."""
        shapes = [_matrix(layer) if self.has_weight_scores else layer.grid for layer in self.layers]
        return [_full(layer, shape, 0.0) for layer, shape in zip(self.layers, shapes, strict=True)]

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
        if not self._is_all_seen:
            weights = [layer.weight for layer in self.layers]
            now = [weight.grad is not None or not weight.requires_grad for weight in weights]
            self._is_reached = [before or here for before, here in zip(self._is_reached, now, strict=True)]
        if c.keeps_scores:
            if step > self._last_event_step:
                return
        elif self.sparsity(step) is None:
            return
        if self.is_stepped_here and self._is_scored_in_one_pass:
            self._due_scale = grad_scale
        else:
            self.score(grad_scale)

    def step_adamw(self, rates: Mapping[int, list[float]], state: Mapping[Tensor, dict[str, Tensor]]) -> None:
        """Step the weights that have rates, by id; score them and mask them on the way if it is time for that."""
        c = self.config
        steps = [id(weight) in rates for weight in self._weights]
        if not any(steps):
            return
        none = [0.0] * len(next(iter(rates.values())))
        rows = [rates.get(id(weight), none) for weight in self._weights]
        is_due, self._due_scale, scale = self._due_scale is not None, None, self._due_scale
        if is_due and not self.scores:
            self.scores = self.new_scores()
        self._is_masked = self.active and self.parts is None and all(steps)
        masks = self.choices if self.is_nm else self.units

        views = self.views

        def moments(name: str) -> list[Tensor]:
            kept = [
                state[weight][name] if is_due else None for weight, is_due in zip(self._weights, steps, strict=True)
            ]
            return [
                view if moment is None else moment if layer.is_plain else layer.unit_view(layer.own(moment))
                for layer, moment, view in zip(self.layers, kept, views, strict=True)
            ]

        masked_adamw(
            views,
            [layer.grad_view if steps[i] else None for i, layer in enumerate(self.layers)],
            moments("exp_avg"),
            moments("exp_avg_sq"),
            upload(np.array(rows), torch.float64, self.seen.device),
            self.scores if is_due else [],
            masks if self._is_masked else [],
            self.score_blocks,
            self.seen,
            str(c.criterion) if c.needs_gradient and self._is_scored_in_one_pass else "snip",
            c.criterion_reduce_type,
            grad_scale=scale or 1.0,
            plan=self._plans[f"adamw, score {is_due}, mask {self._is_masked}"],
        )

    def score(self, grad_scale: float = 1.0) -> None:
        """Score the gradients; where `score_units` has the criterion it is work for the device only, that a CUDA graph
        can hold if it is not the first.
        """
        c = self.config
        if not self.scores:
            self.scores = self.new_scores()
        grads = self.exchange.finite([layer.grad_view for layer in self.layers])
        if not self._is_scored_in_one_pass:
            self._score_in_torch(self.scores, grads, self.seen, grad_scale)
            return
        score_units(
            self.scores,
            self.views,
            grads,
            self.score_blocks,
            self.seen,
            str(c.criterion),
            c.criterion_reduce_type,
            grad_scale=grad_scale,
            plan=self._plans["score"],
        )

    @property
    def _is_scored_in_one_pass(self) -> bool:
        """Whether `score_units` and `masked_adamw` have the criterion."""
        return self.config.criterion in CRITERIA

    def _score_in_torch(
        self, scores: list[Tensor], grads: Sequence[Tensor | None], seen: Tensor, grad_scale: float = 1.0
    ) -> None:
        if self.config.criterion == "block_mask":
            score_masks(scores, self.views, grads, self.blocks, seen, grad_scale)
            return
        blocks = [_EACH] * len(scores) if self.has_weight_scores else self.blocks
        score_layers(self.config, self.layers, blocks, grads, scores, seen, self.exchange, grad_scale)

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
                self.parts = Parts.of_event(step, scores, before, self.units, self._first_units, self.exchange)
                self._shown = None
            if step >= self._last_event_step:
                self.scores = []
        if self.parts and (step >= c.window[1] or self.parts.due(step, c.pruning_frequency) == PARTS):
            self.parts = None

    def rank(self) -> list[Tensor]:
        """What it costs now to prune each unit; what the next `prune` goes by. Work for the device only."""
        c = self.config
        scores = self.scores
        if not c.needs_gradient:
            scores = self.new_scores()
            none: list[Tensor | None] = [None] * len(scores)
            seen = torch.zeros_like(self.seen)
            if not self._is_scored_in_one_pass:
                self._score_in_torch(scores, none, seen)
            else:
                score_units(
                    scores, self.views, none, self.score_blocks, seen, "magnitude", c.criterion_reduce_type,
                    plan=self._plans["magnitude"],
                )  # fmt: skip
        elif c.keeps_weight_scores and not self.is_nm:
            reduce = c.criterion_reduce_type
            scores = [reduce_units(score, block, reduce) for score, block in zip(scores, self.blocks, strict=True)]
        best: list[Tensor] = []
        if self.is_nm:
            locked = self.choices if c.lock_init_sparsity else None
            best, scores = best_and_costs(scores, locked, c.pattern.n, c.pattern.m, self._plans)
        elif self.attentions:
            scores = head_scores(scores, self.sizes, self.attentions, c)
        self._ranked = scores, best
        return scores

    def prune(self) -> list[Tensor]:
        """Choose masks as `selection` was asked to; work for the device only. Returns the costs it went by."""
        if self._ranked is None:
            self.rank()
        assert self._ranked is not None
        (costs, best), self._ranked = self._ranked, None
        if self.is_nm:
            before = apart([(mask.shape[0], mask.shape[1]) for mask in self.units], torch.bool, self.seen.device)
            torch._foreach_copy_(before, self.units)
            self.selection.run(costs, self.units, self._plans["select"])
            m = self.config.pattern.m
            thin_groups(self.choices, best, before, self.units, m, self._plans["thin"])  # once, when a group is pruned
        else:  # the layers of an attention share one mask
            units = [self.units[own[-1]] for own in self.attentions] or self.units
            self.selection.run(costs, units, self._plans["select"])
        self.active, self._is_masked = True, False
        return costs

    def check_scored(self, step: int) -> None:
        """Before an event at this step, leave out layers that nobody named and no gradient has ever reached.

        Processes that hold parts of the layers decide together; copies get the same gradients, and compare masks later.

        Raises:
            PruningError: the event would prune other layers that have no score.
        """
        if not self.config.needs_gradient or self._is_all_seen or self.sparsity(step) is None:
            return
        reached = torch.tensor(self._is_reached, device=self.seen.device) | self.seen
        seen, reached = self.exchange.any(torch.stack([self.seen, reached]))
        for own in self.attentions:
            reached[own] = reached[own].all()  # heads go from all layers of an attention
        if self.config.names_all and bool(reached.any()):
            self._leave_out(reached.tolist())
            seen = seen[reached]
        missing = [layer.name for layer, is_seen in zip(self.layers, seen.tolist(), strict=True) if not is_seen]
        self._is_all_seen = not missing  # which spares later events a wait for the device
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
        units, choices, scores, seen, copies, active = (
            self.units, self.choices, self.scores, self.seen, self.copies, self.active
        )  # fmt: skip
        places = [i for i, is_here in enumerate(stays) if is_here]
        self.take([self.layers[i] for i in places])
        self.units = [units[i] for i in places]
        self.choices = [choices[i] for i in places] if choices else []
        self.scores = [scores[i] for i in places] if scores else []
        self.seen, self.active = seen[places], active
        self.copies = [(places.index(i), tensor) for i, tensor in copies if i in places]

    def masks_are_final(self, step: int) -> bool:
        """Whether no event and no part of one is still to come."""
        return self.config.is_lock or (step >= self._last_event_step and self.parts is None)

    @property
    def _last_event_step(self) -> int:
        start, _, frequency = self.config.window
        return start + self.config.last_event * frequency

    def write_masks(self, step: int) -> None:
        """Zero the pruned weights in place, and in their copies."""
        if self.active and not self._is_masked:
            masks, blocks = self.masks(step)
            apply_masks(self.views, masks, blocks, self._plans["units" if masks is self.units else "weights"])
        if self.active and self.copies:
            masks, blocks = self.masks(step)
            own = [(self.layers[i], tensor) for i, tensor in self.copies]
            copies = [layer.unit_view(layer.own(local(tensor.detach()))) for layer, tensor in own]
            plan = self._plans[f"{len(copies)} copies, {'units' if masks is self.units else 'weights'}"]
            apply_masks(copies, [masks[i] for i, _ in self.copies], [blocks[i] for i, _ in self.copies], plan)
        if self.active and self.attentions:
            zero_biases(self.layers, self.units, self._plans["biases"])
        self._is_masked = False

    def masks(self, step: int) -> tuple[list[Tensor], list[tuple[int, int]]]:
        """The masks in force after this many steps, and the block that each of their values covers."""
        each = [_EACH] * len(self.layers)
        if self.is_nm:
            return self.choices, each
        if self.parts is None:
            return self.units, self.blocks
        due = self.parts.due(step, self.config.pruning_frequency)
        if self._shown is None or self._shown[0] != due:
            self._shown = due, self.parts.masks(due, self.units, self.blocks, self._first_units)
        return self._shown[1], each

    def shrink(self, step: int, lr_of: Callable[[Layer], float]) -> None:
        """Group lasso, from start to end."""
        c = self.config
        if c.reg_coeff is not None and c.window[0] <= step <= c.window[1]:
            for layer, view, block in zip(self.layers, self.views, self.blocks, strict=True):
                shrink_units(view, block, lr_of(layer) * c.reg_coeff)

    def forget_shown(self) -> None:
        """To be called when masks, scores or parts were set from outside."""
        self._is_all_seen = False
        self._shown = None

    @property
    def _first_units(self) -> list[int]:
        """Number of the first unit of each layer that this process holds."""
        return [layer.unit_rows.first * layer.grid[1] for layer in self.layers]


def _shard_group(layers: Sequence[Layer]) -> Any:
    """The processes among which the rows of all these layers are spread, or None for whole ones."""
    groups = {id(layer.rows.group): layer for layer in layers}
    if len(groups) > 1:
        one, other, *_ = groups.values()
        raise PruningError(
            f"op_names: one group's layers compete among the same processes, and {one.name} and {other.name} are "
            "spread over different ones; fully_shard the whole model, or give them groups of their own"
        )
    return layers[0].rows.group


def _device(layers: Sequence[Layer]) -> torch.device:
    devices = {layer.weight.device: layer.name for layer in layers}
    if len(devices) > 1:
        where = ", ".join(f"{name} on {device}" for device, name in devices.items())
        raise PruningError(
            f"op_names: one group's layers compete on one device, but there is {where}; "
            "give the layers of each device a group of their own"
        )
    return next(iter(devices))


def _matrix(layer: Layer) -> tuple[int, int]:
    return matrix_shape(layer.view)


def _full(layer: Layer, shape: tuple[int, int], value: bool | float) -> Tensor:
    dtype = torch.bool if isinstance(value, bool) else torch.float32
    return torch.full(shape, value, dtype=dtype, device=layer.weight.device)

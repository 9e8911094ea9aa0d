"""What it costs to prune each unit of one group of layers, by weights and gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from trisparse.kernels.tables import upload
from trisparse.prune.choosing.criteria import reduce_units, score_layers
from trisparse.prune.choosing.mask_gradient import score_masks
from trisparse.prune.config.group import GroupConfig
from trisparse.prune.pruner.group_weights import GroupWeights
from trisparse.sparse_ops import masked_adamw, score_units
from trisparse.sparse_ops.choosing.score_units import CRITERIA

EACH = (1, 1)  # the block of a value for each weight


class GroupScores:
    """Scores of units, or of weights if `has_weight_scores`, and which layers a gradient reached.

    Attributes:
        scores: fp32 matrices, one for each layer; empty while there is nothing to remember.
        seen: for each layer whether a finite gradient was scored.
        is_all_seen: every layer is known to have a score, which spares later events a wait for the device.
    """

    def __init__(self, config: GroupConfig, weights: GroupWeights) -> None:
        self.config, self.weights = config, weights
        self.has_weight_scores = config.pattern.is_nm or config.keeps_weight_scores
        self.scores: list[Tensor] = []
        self.seen = torch.zeros(len(weights.layers), dtype=torch.bool, device=weights.device)
        self.is_all_seen = False
        self._is_reached = [False] * len(weights.layers)  # by a gradient, or frozen and so not meant to be
        self._due_scale: float | None = None  # of gradients that the next `step_adamw` is to score

    def of_some(self, places: Sequence[int], weights: GroupWeights) -> GroupScores:
        """The same of these of the layers alone, whose weights are given."""
        some = GroupScores(self.config, weights)
        some.scores = [self.scores[i] for i in places] if self.scores else []
        some.seen = self.seen[places]
        return some

    @property
    def _is_in_one_pass(self) -> bool:
        """Whether `score_units` and `masked_adamw` have the criterion."""
        return self.config.criterion in CRITERIA

    @property
    def _blocks(self) -> list[tuple[int, int]]:
        """Of the values that kernels write; other criteria than those of N:M are reduced as they are scored."""
        return [EACH] * len(self.weights.layers) if self.config.pattern.is_nm else self.weights.blocks

    def new(self) -> list[Tensor]:
        """Zeros, one for each unit, or for each weight if `has_weight_scores`."""
        return self.weights.per_weight(0.0) if self.has_weight_scores else self.weights.per_unit(0.0)

    def look_for_gradients(self) -> None:
        """Note which layers have one now."""
        if self.is_all_seen:
            return
        now = [weight.grad is not None or not weight.requires_grad for weight in self.weights.parameters]
        self._is_reached = [before or here for before, here in zip(self._is_reached, now, strict=True)]

    def reached(self) -> tuple[Tensor, Tensor]:
        """For each layer whether it was scored, and whether it has had a gradient at all, on any process."""
        reached = torch.tensor(self._is_reached, device=self.seen.device) | self.seen
        seen, reached = self.weights.exchange.any(torch.stack([self.seen, reached]))
        return seen, reached

    def observe(self, grad_scale: float, step_follows: bool) -> None:
        """Score the gradients, or leave it to a `step_adamw` that follows, if it knows the criterion."""
        if step_follows and self._is_in_one_pass:
            self._due_scale = grad_scale
        else:
            self.score(grad_scale)

    def score(self, grad_scale: float = 1.0) -> None:
        """Score the gradients; where `score_units` has the criterion it is work for the device only, that a CUDA graph
        can hold if it is not the first.
        """
        if not self.scores:
            self.scores = self.new()
        grads = self.weights.exchange.finite([layer.grad_view for layer in self.weights.layers])
        self._score("score", self.scores, grads, self.seen, str(self.config.criterion), grad_scale)

    def _score(
        self,
        plan: str,
        scores: list[Tensor],
        grads: Sequence[Tensor | None],
        seen: Tensor,
        criterion: str,
        scale: float,
    ) -> None:
        c, weights = self.config, self.weights
        if self._is_in_one_pass:
            score_units(
                scores, weights.views, grads, self._blocks, seen, criterion, c.criterion_reduce_type, grad_scale=scale,
                plan=weights.plans[plan],
            )  # fmt: skip
        elif c.criterion == "block_mask":
            score_masks(scores, weights.views, grads, weights.blocks, seen, scale)
        else:
            blocks = [EACH] * len(scores) if self.has_weight_scores else weights.blocks
            score_layers(c, weights.layers, blocks, grads, scores, seen, weights.exchange, scale)

    def costs(self) -> list[Tensor]:
        """What it costs now to prune each unit, or for N:M each weight; work for the device only."""
        c = self.config
        if not c.needs_gradient:
            scores = self.new()
            self._score("magnitude", scores, [None] * len(scores), torch.zeros_like(self.seen), "magnitude", 1.0)
            return scores
        if c.keeps_weight_scores and not c.pattern.is_nm:
            reduce = c.criterion_reduce_type
            return [
                reduce_units(score, block, reduce)
                for score, block in zip(self.scores, self.weights.blocks, strict=True)
            ]
        return self.scores

    def step_adamw(
        self, rates: Mapping[int, list[float]], state: Mapping[Tensor, dict[str, Tensor]], masks: list[Tensor]
    ) -> None:
        """Step the weights that have rates, by id; on the way mask them if there are masks, and score what is due."""
        c, weights = self.config, self.weights
        steps = [id(weight) in rates for weight in weights.parameters]
        none = [0.0] * len(next(iter(rates.values())))
        rows = [rates.get(id(weight), none) for weight in weights.parameters]
        is_due, self._due_scale, scale = self._due_scale is not None, None, self._due_scale
        if is_due and not self.scores:
            self.scores = self.new()
        views = weights.views

        def moments(name: str) -> list[Tensor]:
            kept = [
                state[weight][name] if is_stepped else None
                for weight, is_stepped in zip(weights.parameters, steps, strict=True)
            ]
            return [
                view if moment is None else moment if layer.is_plain else layer.unit_view(layer.own(moment))
                for layer, moment, view in zip(weights.layers, kept, views, strict=True)
            ]

        masked_adamw(
            views,
            [layer.grad_view if is_stepped else None for layer, is_stepped in zip(weights.layers, steps, strict=True)],
            moments("exp_avg"),
            moments("exp_avg_sq"),
            upload(np.array(rows), torch.float64, self.seen.device),
            self.scores if is_due else [],
            masks,
            self._blocks,
            self.seen,
            str(c.criterion) if c.needs_gradient and self._is_in_one_pass else "snip",
            c.criterion_reduce_type,
            grad_scale=scale or 1.0,
            plan=weights.plans[f"adamw, score {is_due}, mask {bool(masks)}"],
        )

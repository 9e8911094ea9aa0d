"""The state of a group as a checkpoint holds it: of whole layers, also where a process has only a part of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trisparse.prune.choosing.progressive import Parts
from trisparse.prune.layers.shards import Rows
from trisparse.prune.pruner.bits import pack_bits, unpack_bits
from trisparse.prune.pruner.group import PrunedGroup


def group_state(group: PrunedGroup) -> dict[str, Any]:
    """Masks as bits, scores, and what is under way; where layers are sharded, all processes make this call."""

    def whole(tensors: Sequence[Tensor], rows: Sequence[Rows]) -> list[Tensor]:
        return [group.weights.exchange.all_rows(t, r) for t, r in zip(tensors, rows, strict=True)]

    units, weights = _rows(group)
    parts = group.parts
    return {
        "units": [pack_bits(mask) for mask in whole(group.units, units)],
        "choices": [pack_bits(mask) for mask in whole(group.choices, weights if group.is_nm else [])],
        "scores": [score.clone() for score in whole(group.scoring.scores, _rows_of_scores(group))],
        "seen": group.scoring.seen.tolist(),
        "active": group.active,
        "parts": parts and {"event_step": parts.event_step, "layer": parts.layer, "unit": parts.unit},
    }


def load_group_state(group: PrunedGroup, state: dict[str, Any]) -> None:
    """Go back to a `group_state`."""
    units, weights = _rows(group)
    for name, masks, all_rows in (("units", group.units, units), ("choices", group.choices, weights)):
        for bits, mask, rows in zip(state[name], masks, all_rows[: len(masks)], strict=True):
            mask.copy_(rows.of(unpack_bits(bits, like=mask.new_empty((rows.total, mask.shape[1])))))
    if not state["scores"]:
        group.scoring.scores = []
    elif not group.scoring.scores:
        group.scoring.scores = group.scoring.new()
    for mine, saved, rows in zip(group.scoring.scores, state["scores"], _rows_of_scores(group), strict=True):
        mine.copy_(rows.of(saved))
    group.scoring.seen.copy_(torch.tensor(state["seen"], device="cpu"))
    group.active = state["active"]
    parts = state["parts"]
    group.parts = Parts(parts["event_step"], parts["layer"].cpu(), parts["unit"].cpu()) if parts else None
    group.forget_shown()


def _rows(group: PrunedGroup) -> tuple[list[Rows], list[Rows]]:
    """Which rows of units and of weights this process holds, layer by layer."""
    return [layer.unit_rows for layer in group.layers], [layer.rows for layer in group.layers]


def _rows_of_scores(group: PrunedGroup) -> list[Rows]:
    return _rows(group)[group.scoring.has_weight_scores][: len(group.scoring.scores)]

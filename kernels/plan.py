"""Plans: what the launches of one operator over one list of layers need, as tensors on the device.

A plan is a list of tensors, so that it can go through an operator's schema: on the CPU a header with one row a
launch and the launch of every layer, then for each launch its `chunks`, `shapes` and `pointers` (see `tables`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trisparse.kernels.tables import ALIGN, STRIDED, Geometry, chunk_flat, chunk_units, geometry, upload

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.bool)
SELECTION_CHUNK = 4096  # units a program of `select_units` takes
GROUPS_CHUNK = 2048  # weights, in groups that are padded to a power of two, a program over N:M groups takes
_FIELDS = 3


class Launch(NamedTuple):
    """One launch, decoded; `dtypes` are those of the weights and of the first operand beside them."""

    layout: int
    block: tuple[int, int]
    tile: tuple[int, int]
    dtypes: tuple[torch.dtype, torch.dtype]
    chunks: Tensor
    shapes: Tensor
    pointers: Tensor


def plan_units(
    weights: Sequence[Tensor],
    others: Sequence[Sequence[Tensor | None]],
    blocks: Sequence[tuple[int, int]],
    before: Sequence[Tensor] | None = None,
    addresses: Sequence[Sequence[int]] | None = None,
) -> list[Tensor]:
    """Plan the launches over unit views and what lies beside them.

    Args:
        weights: unit views; a layer without weights takes no part.
        others: lists of operands beside the weights. One of a weight's own shape has its strides; a layer
            for which one is None takes no part.
        blocks: `(n, m)` of each layer.
        before: a plan of the same layers, shapes, strides and dtypes; but for addresses it is kept.
        addresses: of the weights and of each list beside them, 0 for None, if they are known.
    """
    if before is not None and (moved := _move(before, addresses or _addresses_of(weights, *others))) is not None:
        return moved
    groups: dict[tuple[int, ...], list[Geometry]] = {}
    launch_of = [-1] * len(weights)
    for layer, (weight, block) in enumerate(zip(weights, blocks, strict=True)):
        beside = [operand[layer] for operand in others]
        if not weight.numel() or any(operand is None for operand in beside):
            continue
        entry = geometry(weight, block, layer, all(_aligned(operand) for operand in beside))
        key = entry.layout, *entry.block, *entry.tile, *_dtypes(weight, beside)
        groups.setdefault(key, []).append(entry)
        launch_of[layer] = list(groups).index(key)
    device = weights[0].device if weights else torch.device("cpu")
    plan = [
        torch.tensor(list(groups), dtype=torch.int64, device="cpu"),
        torch.tensor(launch_of, dtype=torch.int64, device="cpu"),
    ]
    for entries in groups.values():
        plan += [
            upload(chunk_units(entries), torch.int32, device),
            upload([entry.shape for entry in entries], torch.int64, device),
            upload([_addresses(weights, others, entry.shape[-1]) for entry in entries], torch.int64, device),
        ]
    return plan


def plan_selection(
    scores: Sequence[Tensor], masks: Sequence[Tensor], sizes: Sequence[int], before: Sequence[Tensor] | None = None,
    addresses: Sequence[Sequence[int]] | None = None,
) -> list[Tensor]:  # fmt: skip
    """Plan of `select_units`: whether all is aligned (on the CPU), addresses, lengths, work items, unit sizes."""
    device = scores[0].device
    moving = _pointers(addresses or _addresses_of(scores, masks), device)
    if before is not None:
        return [*moving, *before[2:]]
    lengths = [score.numel() for score in scores]
    return [
        *moving,
        upload(lengths, torch.int64, device),
        upload(chunk_flat(lengths, SELECTION_CHUNK), torch.int32, device),
        upload(sizes, torch.int64, device),
    ]


def plan_groups(
    operands: Sequence[Sequence[Tensor]], lengths: Sequence[int], m: int, before: Sequence[Tensor] | None = None,
    addresses: Sequence[Sequence[int]] | None = None,
) -> list[Tensor]:  # fmt: skip
    """Plan over N:M groups of m, so many in each layer: whether all is aligned, addresses, lengths, work items."""
    device = operands[0][0].device
    moving = _pointers(addresses or _addresses_of(*operands), device)
    if before is not None:
        return [*moving, *before[2:]]
    items = chunk_flat(lengths, GROUPS_CHUNK >> (m - 1).bit_length())
    return [*moving, upload(lengths, torch.int64, device), upload(items, torch.int32, device)]


def launches(plan: Sequence[Tensor]) -> list[Launch]:
    """Decode a plan."""
    header, tables = plan[0].tolist(), plan[2:]
    return [
        Launch(layout, (n, m), (down, across), (DTYPES[w], DTYPES[g]), *tables[i * _FIELDS : (i + 1) * _FIELDS])
        for i, (layout, n, m, down, across, w, g) in enumerate(header)
    ]


def _addresses_of(*operands: Sequence[Tensor | None]) -> list[list[int]]:
    """Of each list of operands, 0 for None."""
    return [[0 if t is None else t.data_ptr() for t in tensors] for tensors in operands]


def _pointers(every: Sequence[Sequence[int]], device: torch.device) -> list[Tensor]:
    """Whether all are aligned, on the CPU, and addresses `[layers, operands]` on the device."""
    addresses = np.array(every, dtype=np.int64).T
    aligned = torch.tensor(not (addresses % ALIGN).any(), device="cpu")
    return [aligned, upload(np.ascontiguousarray(addresses), torch.int64, device)]


def _move(plan: Sequence[Tensor], every: Sequence[Sequence[int]]) -> list[Tensor] | None:
    """The plan with new addresses, or None if one of them is not aligned, as its launch wants it."""
    launch_of = plan[1].numpy()
    addresses = np.array(every, dtype=np.int64).T  # [layers, operands]
    moved = list(plan)
    for i, layout in enumerate(plan[0][:, 0].tolist() if len(plan[0]) else []):
        mine = np.ascontiguousarray(addresses[launch_of == i])
        if layout != STRIDED and (mine % ALIGN).any():
            return None
        place = 2 + i * _FIELDS + 2
        moved[place] = upload(mine, torch.int64, plan[place].device)
    return moved


def _aligned(operand: Tensor | None) -> bool:
    return operand is not None and operand.data_ptr() % ALIGN == 0


def _dtypes(weight: Tensor, beside: Sequence[Tensor | None]) -> tuple[int, int]:
    assert beside[0] is not None
    return DTYPES.index(weight.dtype), DTYPES.index(beside[0].dtype)


def _addresses(weights: Sequence[Tensor], others: Sequence[Sequence[Tensor | None]], layer: int) -> list[int]:
    operands = (weights[layer], *(operand[layer] for operand in others))
    return [operand.data_ptr() for operand in operands if operand is not None]

"""What is zero, counted in the weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trisparse.prune.errors import PruningError
from trisparse.prune.files import atomic_write
from trisparse.prune.layers.census import count_parameters, unprunable_notes
from trisparse.prune.layers.modules import find_head
from trisparse.prune.layers.shards import local
from trisparse.prune.pruner.group import PrunedGroup
from trisparse.prune.pruner.plots import plot_sparsity
from trisparse.prune.pruner.report_table import LayerRow, table

_PUBLISHED = "Element-wise/matmul, Gemm, conv ratio"  # as it is called in the predecessor's tables


@dataclass(frozen=True)
class SparsityReport:
    """Print it, or take `to_dict()`; `save(dir)` writes sparsity.json and sparsity.png.

    Attributes:
        layers: one row a pruned layer.
        pruned_layers: zeros / weights of the pruned layers.
        matmul_gemm_conv: zeros / weights of all that multiplies: Linear, Conv, attention, recurrent layers, experts.
        all_parameters: zeros / numbers in all parameters.
        pattern_verified: every zero that a mask asks for lies in a whole unit; for N:M every group has
            at most N nonzero weights. None where no mask was asked for.
        complete: the schedule has ended; None where there is none.
        head: the layer that was left dense as the classification head, if any.
        notes: what a reader should know besides.
    """

    layers: tuple[LayerRow, ...]
    pruned_layers: float
    matmul_gemm_conv: float
    all_parameters: float
    pattern_verified: bool | None
    complete: bool | None
    head: str | None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        totals = [
            ("zeros of the pruned layers", self.pruned_layers),
            (f"zeros of all Linear and Conv weights ({_PUBLISHED})", self.matmul_gemm_conv),
            ("zeros of all parameters", self.all_parameters),
        ]
        verdicts = ("pattern verified", self.pattern_verified), ("schedule complete", self.complete)
        said = [f"{what}: {'yes' if verdict else 'no'}" for what, verdict in verdicts if verdict is not None]
        head = ["; ".join([*said, f"head left dense: {self.head or 'none'}"])] if said else []
        return "\n".join([*table(self.layers, totals), *head, *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = dataclasses.asdict(self)
        values["layers"] = [{**dataclasses.asdict(row), "sparsity": row.sparsity} for row in self.layers]
        return values

    def save(self, directory: str | Path, overwrite: bool = False) -> None:
        """Write sparsity.json, and sparsity.png where matplotlib is installed, in the place of an earlier report's.

        Raises:
            PruningError: files of these names that are no report's, unless `overwrite` is set.
        """
        directory = Path(directory)
        table, picture = directory / "sparsity.json", directory / "sparsity.png"
        if not overwrite and (table.exists() or picture.exists()) and not _is_report(table):
            raise PruningError(
                f"{table if table.exists() else picture}: was not written by a SparsityReport; give another folder, or "
                "overwrite=True"
            )
        directory.mkdir(parents=True, exist_ok=True)
        picture.unlink(missing_ok=True)  # else one of another report, should what follows be interrupted
        atomic_write(table, json.dumps(self.to_dict(), indent=2) + "\n")
        plot_sparsity([(row.name, row.pattern, row.sparsity) for row in self.layers], self.pruned_layers, picture)


def _is_report(path: Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"layers", "pruned_layers", "pattern_verified"} <= found.keys()


@torch.no_grad()
def make_report(
    model: nn.Module, groups: Sequence[PrunedGroup], masks: dict[str, torch.Tensor], step: int, left: Sequence[str]
) -> SparsityReport:
    """See `Pruner.report`; `masks` by name, in force after `step` steps and held by the weights; `left`: more notes."""
    rows = [row for group in groups for row in _rows(group, masks)]
    zeros, weights = sum(row.zeros for row in rows), sum(row.weights for row in rows)
    matmul_zeros, matmul, all_zeros, everything = count_parameters(model)
    complete = all(g.config.is_lock or step >= g.config.window[1] for g in groups)
    head = find_head(model)
    if head is not None and any(layer.module is head[1] for group in groups for layer in group.layers):
        head = None
    return SparsityReport(
        layers=tuple(rows),
        pruned_layers=zeros / weights,
        matmul_gemm_conv=matmul_zeros / matmul,
        all_parameters=all_zeros / everything,
        pattern_verified=all(row.verified for row in rows),
        complete=complete,
        head=head[0] if head is not None else None,
        notes=(*_notes(groups, rows, step, complete), *left, *unprunable_notes(model)),
    )


def _rows(group: PrunedGroup, masks: dict[str, torch.Tensor]) -> list[LayerRow]:
    rows = []
    for layer, block in zip(group.layers, group.weights.blocks, strict=True):
        nonzero = layer.values != 0
        mask = local(masks[layer.name])
        n, m = block
        rows_, cols = layer.grid

        def units(tensor: torch.Tensor, layer=layer, shape=(rows_, n, cols, m)) -> torch.Tensor:
            return layer.unit_view(tensor).reshape(shape).sum((1, 3))

        if group.is_nm:
            broken = units(nonzero) > group.config.pattern.n
        else:
            left = units(mask)
            broken = (left != 0) & (left != n * m)
        counts = [(~nonzero).sum(), (~mask).sum(), broken.sum()]
        zeros, pruned, broken_units = group.weights.exchange.sum([int(count) for count in counts])
        shape, weights = layer.shape, layer.numel
        rows.append(LayerRow(layer.name, str(layer.pattern), shape, weights, zeros, zeros - pruned, not broken_units))
    return rows


def _notes(groups: Sequence[PrunedGroup], rows: list[LayerRow], step: int, complete: bool) -> list[str]:
    notes = []
    if not complete:
        ends = ", ".join(str(g.config.window[1]) for g in groups if not g.config.is_lock)
        zeros = sum(row.zeros for row in rows) / sum(row.weights for row in rows)
        targets = ", ".join(str(g.config.goal) for g in groups if not g.config.is_lock)
        notes.append(f"stopped at step {step}, before end_step {ends}: {zeros:.4f} are zero, the target is {targets}")
    for index, group in enumerate(groups):
        dense, units = group.weights.exchange.sum(
            [sum(int(mask.sum()) for mask in group.units), sum(mask.numel() for mask in group.units)]
        )
        if group.is_nm and dense:
            notes.append(f"group {index}: {dense / units:.2%} of the {group.config.pattern} groups are still dense")
        if not group.config.is_lock and (note := _one_event(*group.config.window)):
            notes.append(f"group {index}: {note}")
        if own := group.config.own_parts:
            notes.append(f"group {index}: {', '.join(f'{key} {name}' for key, name in own.items())}")
        if group.left_out:
            notes.append(f"left out, since no gradient reached them: {', '.join(group.left_out)}")
    if extra := sum(row.extra_zeros for row in rows):
        notes.append(f"{extra} weights are zero though no mask prunes them")
    return notes


def _one_event(start: int, end: int, frequency: int) -> str | None:
    if start < end < start + frequency:
        return (
            f"pruning_frequency {frequency} is longer than the {end - start} steps from start_step to end_step, so one "
            f"event, at step {start}, went straight to the target"
        )
    return None

"""The rows of a sparsity report as text: layers that are alike share a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile


@dataclass(frozen=True)
class LayerRow:
    """One pruned layer. `extra_zeros` are zero though kept; `verified`: its zeros are whole units."""

    name: str
    pattern: str
    shape: tuple[int, ...]
    weights: int
    zeros: int
    extra_zeros: int
    verified: bool

    @property
    def sparsity(self) -> float:
        return self.zeros / self.weights if self.weights else 0.0


def table(layers: Sequence[LayerRow], totals: Sequence[tuple[str, float]]) -> list[str]:
    """A head, a line for each layer or all that have one pattern and sparsity, and totals below the last column."""
    alike: dict[tuple[str, str, int], list[LayerRow]] = {}
    for row in layers:
        own = len(alike) if row.extra_zeros else -1  # these are read one by one
        alike.setdefault((row.pattern, f"{row.sparsity:.4f}", own), []).append(row)
    has_extra = any(row.extra_zeros for row in layers)
    cells = [["layer", "pattern", "shape", "zeros", *(["extra"] if has_extra else []), "sparsity"]]
    for (pattern, sparsity, _), rows in alike.items():
        extra = [str(sum(row.extra_zeros for row in rows))] if has_extra else []
        zeros = str(sum(row.zeros for row in rows))
        cells.append([name_of([row.name for row in rows]), pattern, _shape(rows), zeros, *extra, sparsity])
    lines = ["  ".join(line) for line in _aligned(cells)]
    width = max(len(lines[0]), *(len(label) + 8 for label, _ in totals))
    return [*lines, *(f"{label:<{width - 8}}{value:8.4f}" for label, value in totals)]


def name_of(names: Sequence[str]) -> str:
    """One name for several layers: how many there are, and what they lie in."""
    if len(names) == 1:
        return names[0]
    columns = zip(*(name.split(".") for name in names), strict=False)
    where = ".".join(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, columns))
    return f"{len(names)} layers" + (f" in {where}" if where else "")


def _shape(rows: Sequence[LayerRow]) -> str:
    shapes = {row.shape for row in rows}
    return "x".join(map(str, rows[0].shape)) if len(shapes) == 1 else f"{len(shapes)} shapes"


def _aligned(cells: Sequence[Sequence[str]]) -> list[list[str]]:
    """Names to the left, all else to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        [line[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))]
        for line in cells
    ]

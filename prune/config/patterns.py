"""Patterns: what a unit is, and how a weight is laid out in units."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trisparse.prune.config.own_parts import Part, block_of, find_part, name_of
from trisparse.prune.errors import PruningError, nearest

if TYPE_CHECKING:
    from torch import Tensor

MAX_M = 32  # longest group of an N:M pattern
_EXAMPLES = ("1x1", "4x1", "8x1", "16x16", "1xchannel", "channelx1", "mha", "1:4", "2:4", "4:8")


@dataclass(frozen=True)
class Pattern:
    """A parsed pattern. `kind` is `block`, `row`, `column`, `nm` or `heads`.

    The unit of a `block` is n output rows by m input columns; of `row` n whole output rows or filters; of
    `column` n whole input columns or input channels; of `nm` a group of m inputs of which n are kept. Of `heads` it is
    a head of attention, which is n rows of some weights and n columns of another, or `fused`: m rows of each of n
    projections that lie in one weight, one behind the other.
    `sizes` is a function of one's own that says how large a layer's blocks are; see `of_layer`.
    """

    text: str
    kind: str
    n: int = 1
    m: int = 1
    sizes: Part | None = None

    def __str__(self) -> str:
        return self.text

    @property
    def is_nm(self) -> bool:
        return self.kind == "nm"

    @property
    def is_24(self) -> bool:
        """Whether at most two of any aligned four inputs stay."""
        return self.is_nm and ((self.m % 4 == 0 and self.n <= 2) or (self.n, self.m) == (1, 2))

    @property
    def is_heads(self) -> bool:
        return self.kind == "heads"

    def of_layer(self, name: str, shape: tuple[int, int]) -> Pattern:
        """What the pattern is for a layer with a 2-D view of this shape: blocks of one size, where a function says it.

        Raises:
            PruningError: the function gives no size.
        """
        if self.sizes is None:
            return self
        n, m = block_of(self.sizes, name, shape)
        return Pattern(f"{n}x{m}", "block", n, m)

    def unit_view(self, weight: Tensor, layout: str) -> Tensor:
        """View of the weight's own storage whose rows and columns the units tile.

        `layout` is `linear` for `[out, in]`, `transposed` for `[in, out]`, `conv` for `[out, in, *taps]`,
        `conv_transposed` for `[in, out, *taps]`. A linear gives `[out, in]`, a conv `[out, taps, in]`: the input is the
        fastest axis. For `column` the input axis comes first, so that a column is a row of the view; for
        `fused` the heads, `[heads, projections, …]`, which takes a contiguous weight.
        """
        if self.kind == "fused":
            outer, inner = (weight.shape[0], 1) if layout == "transposed" else (1, weight.shape[1])
            return weight.view(outer * self.n, -1, self.m * inner).transpose(0, 1)
        if layout in ("conv", "conv_transposed"):
            order = (0, 2, 1) if layout == "conv" else (1, 2, 0)
            view = weight.flatten(2).permute(order)
            return view.permute(2, 0, 1) if self.kind == "column" else view
        view = weight.t() if layout == "transposed" else weight
        return view.t() if self.kind == "column" else view

    def row_axis(self, layout: str) -> int:
        """Dimension of the weight that is the rows of its unit view."""
        return int(layout.endswith("transposed") != (self.kind == "column"))

    def block(self, view: Tensor) -> tuple[int, int]:
        """Shape of one unit in the matrix that the view is read as."""
        if self.kind in ("row", "column", "fused"):
            return 1 if self.kind == "fused" else self.n, math.prod(view.shape[1:])
        return (1, self.m) if self.is_nm else (self.n, self.m)

    def unit_size(self, view: Tensor) -> int:
        """Weights that go when one unit is pruned."""
        if self.is_nm:
            return self.m - self.n
        n, m = self.block(view)
        return n * m

    def misfit(self, view: Tensor, rows: int) -> str | None:
        """Why the pattern does not divide the view of a weight, which has so many rows in all, or None."""
        cols = math.prod(view.shape[1:])
        n, m = self.block(view)
        if rows % n:
            return f"{rows} {'input columns' if self.kind == 'column' else 'output rows'} are no multiple of {n}"
        if self.is_nm and view.shape[-1] % m:  # of a conv: a group would reach from one tap into the next
            return f"{view.shape[-1]} input {'channels' if view.dim() == 3 else 'columns'} are no multiple of {m}"
        return f"{cols} input columns are no multiple of {m}" if cols % m else None


def parse_pattern(text: object) -> Pattern:
    """Parse `NxM`, `Nxchannel`, `channelxM`, `mha`, `N:M` (N kept of every M inputs), or a function of block sizes.

    Raises:
        PruningError: anything else.
    """
    found = find_part("pattern", text)
    if callable(found):
        return Pattern(name_of(found), "block", 0, 0, found)
    if isinstance(text, str) and (rows := re.fullmatch(r"([1-9]\d*)xchannel", text)):
        return Pattern(text, "row", int(rows[1]))
    if isinstance(text, str) and (columns := re.fullmatch(r"channelx([1-9]\d*)", text)):
        return Pattern(text, "column", int(columns[1]))
    if text == "mha":
        return Pattern("mha", "heads")
    if isinstance(text, str) and (block := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)):
        return Pattern(text, "block", int(block[1]), int(block[2]))
    if isinstance(text, str) and (group := re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text)):
        n, m = int(group[1]), int(group[2])
        if n < m <= MAX_M:
            return Pattern(text, "nm", n, m)
        raise PruningError(f"pattern: {text!r} keeps {n} of every {m}; want N < M <= {MAX_M}, such as 2:4")
    raise PruningError(
        f"pattern: {text!r} is not known; want NxM, Nxchannel, channelxM, mha or N:M{nearest(str(text), _EXAMPLES)}"
    )

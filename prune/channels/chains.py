"""Chains: channels or heads that some layers make and others read, so that they go from all of them or from none."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Side(NamedTuple):
    """The rows of a layer that makes a chain's units, the columns of one that reads them, or all that lies between.

    Attributes:
        layer: its name.
        kind: `out`, `in`, or `all` for a layer whose channels pass one by one, as through a batch norm.
        unit: int64, for every row or column the unit that it is of.
        parts: in how many equal parts the units come, each in the same order: 2 for a gate and what it opens, in one.
        fixed: of `in`, bool: which columns read what does not depend on the model's input.
        values: what those read.
    """

    layer: str
    kind: str
    unit: Tensor
    parts: int = 1
    fixed: Tensor | None = None
    values: Tensor | None = None


class Chain(NamedTuple):
    """Units between layers.

    Attributes:
        sides: all places that have a row or column for each unit.
        units: how many there are.
        obstacle: why the units must stay, or an empty string.
        is_heads: whether a unit is a head, so that single rows can stay that are zero.
    """

    sides: tuple[Side, ...]
    units: int
    obstacle: str = ""
    is_heads: bool = False

    @property
    def producers(self) -> list[str]:
        """The layers that make the units."""
        return [side.layer for side in self.sides if side.kind == "out"]

    @property
    def readers(self) -> list[Side]:
        """Where the units are read."""
        return [side for side in self.sides if side.kind == "in"]


class Found(NamedTuple):
    """What a search has found.

    Attributes:
        chains: in the model's order.
        reasons: of layers with zero rows that are in no chain, what reads these.
        note: why the search had to go by names and not by what the model does, or an empty string.
    """

    chains: list[Chain]
    reasons: dict[str, str]
    note: str = ""

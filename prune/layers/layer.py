"""One weight that is pruned, as its pattern's units see it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from torch import Tensor, nn

from trisparse.prune.config.patterns import Pattern
from trisparse.prune.errors import PruningError
from trisparse.prune.layers.shards import Rows, is_sharded, local, rows_of
from trisparse.sparse_ops.choosing.units import grid_shape


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight with its pattern: a parameter, or an expert's part of one that stacks those of many.

    Attributes:
        name: in the bare model.
        module: that holds the parameter.
        weight: the parameter, whole.
        pattern: what its units are.
        layout: as `Pattern.unit_view` takes it.
        parameter: its name in the module.
        part: which entry of its first dimension this is, or None for all of it.
        attention: whose heads its units are, or None.
        bias: name of the parameter that goes with its units, or None.
    """

    name: str
    module: nn.Module
    weight: nn.Parameter
    pattern: Pattern
    layout: str
    parameter: str = "weight"
    part: int | None = None
    attention: str | None = None
    bias: str | None = None

    @property
    def place(self) -> str:
        """What the parameter, or the part, is called in the bare model."""
        return f"{self.name}.weight" if self.parameter == "weight" and self.part is None else self.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the layer's own weight, over all processes."""
        return tuple(self.weight.shape if self.part is None else self.weight.shape[1:])

    @property
    def numel(self) -> int:
        """Weights in all, over all processes."""
        return self.weight.numel() if self.part is None else self.weight.numel() // len(self.weight)

    def own(self, tensor: Tensor) -> Tensor:
        """This layer's part of a tensor of the parameter's shape."""
        return tensor if self.part is None else tensor[self.part]

    def unit_view(self, own: Tensor) -> Tensor:
        """View a tensor of the layer's own shape as the pattern's units see it."""
        return self.pattern.unit_view(own, self.layout)

    @functools.cached_property
    def rows(self) -> Rows:
        """Which rows of the unit view this process holds.

        Raises:
            PruningError: experts that are spread over processes, or a weight that is cut along another axis.
        """
        if not is_sharded(self.weight):
            total = len(self.view)
            return Rows(0, total, total, total)
        if self.part is None:
            return rows_of(self.name, self.weight, self.pattern.row_axis(self.layout))
        raise PruningError(
            f"{self.name}: is an expert of a weight that is spread over processes, which can't be pruned; keep "
            "experts whole, or add them to excluded_op_names"
        )

    @functools.cached_property
    def is_plain(self) -> bool:
        """Whether units see the parameter as it is, whole and untransposed."""
        is_whole = self.part is None and not is_sharded(self.weight)
        return is_whole and self.layout == "linear" and self.pattern.kind not in ("column", "fused")

    @property
    def values(self) -> Tensor:
        """What this process holds of the layer's own weight, in the parameter's storage."""
        return self.own(local(self.weight.detach()))

    @property
    def view(self) -> Tensor:
        """The values as units see them."""
        return self.unit_view(self.values)

    @property
    def grad_view(self) -> Tensor | None:
        grad = self.weight.grad
        if grad is not None and self.pattern.kind == "fused":
            grad = grad.contiguous()
        return grad if grad is None or self.is_plain else self.unit_view(self.own(local(grad)))

    @property
    def block(self) -> tuple[int, int]:
        return self.pattern.block(self.view)

    @property
    def grid(self) -> tuple[int, int]:
        """Units down and across, on this process."""
        return grid_shape(self.view, self.block)

    @property
    def unit_rows(self) -> Rows:
        """Which rows of units this process holds."""
        return self.rows.of_units(self.block[0])

    @property
    def unit_size(self) -> int:
        return self.pattern.unit_size(self.view)

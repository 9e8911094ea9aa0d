"""The weights of one group of layers, as kernels take them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trisparse.prune.errors import PruningError
from trisparse.prune.layers.layer import Layer
from trisparse.prune.layers.shards import Exchange, local
from trisparse.sparse_ops import Plan
from trisparse.sparse_ops.choosing.units import matrix_shape


class GroupWeights:
    """Layers that compete with each other, on one device and among the same processes.

    Attributes:
        blocks: of each layer.
        sizes: weights in a unit of each layer.
        parameters: each layer's weight as the optimizer has it.
        plans: of the kernels that go over all of these weights, by what they do.
        exchange: with the other processes that hold rows of these weights.
        is_sharded: whether each process holds rows of the weights.

    Raises:
        PruningError: layers lie on several devices, or are spread over different processes.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = list(layers)
        self.blocks = [layer.block for layer in layers]
        self.sizes = [layer.unit_size for layer in layers]
        self.parameters = [layer.weight for layer in layers]
        self.plans: defaultdict[str, Plan] = defaultdict(Plan)
        self.device = _device(layers)
        self.exchange = Exchange(_shard_group(layers))
        self.is_sharded = any(layer.rows.group is not None for layer in layers)
        self._look()

    @property
    def views(self) -> list[Tensor]:
        """The weights as units see them, also after `weight.data` was set to another tensor."""
        if self._addresses != self._current_addresses():
            self._look()
        return self._views

    def _current_addresses(self) -> list[int]:
        weights = [local(weight) for weight in self.parameters] if self.is_sharded else self.parameters
        return [weight.data_ptr() for weight in weights]

    def _look(self) -> None:
        self._views = [layer.view for layer in self.layers]
        self._addresses = self._current_addresses()

    @property
    def first_units(self) -> list[int]:
        """Number of the first unit of each layer that this process holds."""
        return [layer.unit_rows.first * layer.grid[1] for layer in self.layers]

    def per_unit(self, value: bool | float) -> list[Tensor]:
        """A matrix for each layer with this value for every unit, bool or fp32."""
        return [self._full(layer.grid, value) for layer in self.layers]

    def per_weight(self, value: bool | float) -> list[Tensor]:
        """The same with a value for every weight."""
        return [self._full(matrix_shape(layer.view), value) for layer in self.layers]

    def _full(self, shape: tuple[int, int], value: bool | float) -> Tensor:
        dtype = torch.bool if isinstance(value, bool) else torch.float32
        return torch.full(shape, value, dtype=dtype, device=self.device)


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

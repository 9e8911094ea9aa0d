"""Whether what the masks prune is zero still, and what to say if it is not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trisparse.prune.errors import PruningError
from trisparse.prune.pruner.group import PrunedGroup
from trisparse.prune.pruner.places import Places
from trisparse.sparse_ops.choosing.units import expand_units

_EVERY = 8  # steps, on a GPU


def came_back(name: str, count: int | str, optimizer: str | None) -> PruningError:
    """The error for weights of a layer that are no longer zero; `optimizer` is the class of the attached one."""
    return PruningError(
        f"{name}: {count} weights are not zero where the mask prunes; something wrote to it after "
        f"pruner.step(): where {optimizer or 'the optimizer'} keeps a copy of the weights, attach its outermost "
        "wrapper, or call pruner.observe() and pruner.step() around its step; after an average or saved weights are "
        "put in, call pruner.apply_masks()"
    )


@torch.no_grad()
def check_zeros(groups: Sequence[PrunedGroup], step: int, optimizer: str | None) -> None:
    """Read all weights; where layers are sharded, all processes make this call.

    Raises:
        PruningError: a weight is not zero where its mask prunes.
    """
    for group in groups:
        if not group.active:
            continue
        masks, blocks = group.masks(step)
        found = [
            int(((view != 0).flatten(1) & ~expand_units(mask, block)).sum())
            for view, mask, block in zip(group.weights.views, masks, blocks, strict=True)
        ]
        for layer, count in zip(group.layers, group.weights.exchange.sum(found), strict=True):
            if count:
                raise came_back(layer.place, count, optimizer)


class ZeroWatch:
    """Looks at a few pruned weights of one layer a step, so that a copy which comes back is noticed soon.

    A look is two small reads, on a GPU some launches, and so at every eighth step there. It waits for nothing: what it
    saw is read by `check`, which is called where the host waits for the device anyway.
    """

    def __init__(self, groups: Sequence[PrunedGroup]) -> None:
        self._groups = groups
        self._turn = 0
        self._places: dict[tuple, Places] = {}
        self._seen: dict[str, Tensor] = {}  # name of a layer -> how many of its pruned weights were not zero

    def look(self, step: int, optimizer: str | None) -> None:
        """At the next layer in turn, on this process.

        Raises:
            PruningError: one of its pruned weights is not zero; on a CPU at once.
        """
        layers = [(group, i) for group in self._groups if group.active for i in range(len(group.layers))]
        if not layers or (step % _EVERY and layers[0][0].weights.device.type != "cpu"):
            return
        self._turn = (self._turn + 1) % len(layers)
        group, i = layers[self._turn]
        masks, blocks = group.masks(step)
        layer, mask = group.layers[i], masks[i]
        view = layer.view
        places = self._places.get((layer.name, blocks[i]))
        if places is None:
            rows, cols = mask.shape
            places = self._places[layer.name, blocks[i]] = Places(view.shape, (rows, cols), blocks[i], mask.device)
        seen = ((view[places.weights] != 0) & ~mask[places.units]).sum()
        name = layer.place
        self._seen[name] = self._seen[name] + seen if name in self._seen else seen
        if mask.device.type == "cpu":
            self.check(optimizer)

    def check(self, optimizer: str | None) -> None:
        """Raise PruningError if a look since the last call has seen a pruned weight that was not zero."""
        seen, self._seen = self._seen, {}
        for name, count in seen.items():
            if count:
                raise came_back(name, f"at least {int(count)}", optimizer)

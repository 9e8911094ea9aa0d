"""Magnitude at once, each layer to its own sparsity."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from trisparse.prune.config.config import PruningConfig
from trisparse.prune.config.group import GroupConfig
from trisparse.prune.layers.layer import Layer
from trisparse.prune.layers.modules import exact
from trisparse.prune.pruner.pruner import Pruner
from trisparse.prune.pruner.report import SparsityReport


def prune_by_magnitude(
    model: nn.Module, layers: Sequence[Layer], sparsities: Mapping[str, float], group: GroupConfig
) -> SparsityReport:
    """Zero the smallest units of each layer, in place; 0 leaves a layer as it is.

    Args:
        model: that has the layers.
        layers: to be pruned.
        sparsities: by layer name.
        group: the pattern, and all else but names and target.
    """
    names: dict[float, tuple[str, ...]] = {}
    for layer in layers:
        names[sparsities[layer.name]] = (*names.get(sparsities[layer.name], ()), exact(layer.name))
    own: dict[str, Any] = {"excluded_op_names": (), "exclude_head": False, "pruning_scope": "local"}
    groups = [
        dataclasses.replace(group, op_names=found, target_sparsity=sparsity, **own)
        for sparsity, found in names.items()
        if sparsity
    ]
    pruner = Pruner(model, PruningConfig.of_groups(groups))
    pruner.start()
    return pruner.report()

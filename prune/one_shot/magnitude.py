"""Magnitude at once, each layer to its own sparsity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from trisparse.prune.pruner.layer import Layer
from trisparse.prune.pruner.layers import exact
from trisparse.prune.pruner.once import prune_once
from trisparse.prune.pruner.report import SparsityReport


def prune_by_magnitude(
    model: nn.Module, layers: Sequence[Layer], sparsities: Mapping[str, float], keys: Mapping[str, Any]
) -> SparsityReport:
    """Zero the smallest weights of each layer, in place, as `prune_once` does; 0 leaves a layer as it is.

    Args:
        model: that has the layers.
        layers: to be pruned.
        sparsities: by layer name.
        keys: of `PruningConfig`, for all layers.
    """
    names: dict[float, list[str]] = {}
    for layer in layers:
        names.setdefault(sparsities[layer.name], []).append(exact(layer.name))
    groups = [{"op_names": found, "target_sparsity": sparsity} for sparsity, found in names.items() if sparsity]
    replaced = {"op_names", "excluded_op_names", "target_sparsity", "exclude_head"}
    common = {key: value for key, value in keys.items() if key not in replaced}
    return prune_once(model, **common, pruning_scope="local", exclude_head=False, pruning_configs=groups)

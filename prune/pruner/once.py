"""One-shot pruning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from trisparse.prune.config.config import PruningConfig
from trisparse.prune.errors import PruningError
from trisparse.prune.pruner.pruner import Pruner
from trisparse.prune.pruner.report import SparsityReport

SCHEDULE = ("pruning_type", "start_step", "end_step", "pruning_frequency", "sparsity_decay_type", "reg_type")


def prune_once(model: nn.Module, **keys: Any) -> SparsityReport:
    """Prune a model by weight magnitude, at once and in place.

    Args:
        model: any model; its classification head stays dense unless `exclude_head=False`.
        **keys: those of `PruningConfig`, such as `pattern="2:4"` or `target_sparsity=0.8`.

    Returns:
        The report that `Pruner.report` gives.

    Raises:
        PruningError: what the keys ask for does not fit the model, or needs a training loop.
    """
    groups = [group for group in keys.get("pruning_configs") or [] if isinstance(group, Mapping)]
    for key in SCHEDULE:
        if any(key in mapping for mapping in (keys, *groups)):
            raise PruningError(f"{key}: prune_once prunes by magnitude, at once; for a schedule use Pruner")
    pruner = Pruner(model, PruningConfig(pruning_type="magnitude", start_step=0, end_step=0, **keys))
    pruner.start()
    return pruner.report()

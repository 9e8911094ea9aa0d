"""Prune a large model at once, by what a calibration set shows."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from trisparse.prune.config.config import PruningConfig
from trisparse.prune.errors import PruningError
from trisparse.prune.one_shot.calibrate import calibrate
from trisparse.prune.one_shot.sparsegpt import SparseGPT
from trisparse.prune.one_shot.wanda import Wanda
from trisparse.prune.pruner.layers import exact
from trisparse.prune.pruner.left_out import is_named, listed, notes_of
from trisparse.prune.pruner.once import SCHEDULE
from trisparse.prune.pruner.pruner import Pruner
from trisparse.prune.pruner.report import SparsityReport
from trisparse.prune.pruner.weights import named_weights

METHODS: dict[str, type[Wanda] | type[SparseGPT]] = {"wanda": Wanda, "sparsegpt": SparseGPT}


@torch.no_grad()
def prune_one_shot(
    model: nn.Module, batches: Iterable[Any], method: str = "wanda", *,
    progress: Callable[[str], None] = lambda text: None, **keys: Any,
) -> SparsityReport:  # fmt: skip
    """Prune a model's linear layers without training, in place, block by block on calibration data.

    `wanda` zeroes weights by |W| · ‖X‖ (arXiv 2306.11695); `sparsegpt` also changes the weights that stay, so that
    each layer's outputs change least (arXiv 2301.00774). Both see inputs as the blocks already pruned give them: the
    batches go through the whole model once, and for each block through all before it, which for many blocks is half as
    many forwards as there are blocks.

    Args:
        model: its blocks are the elements of an `nn.ModuleList`, as transformers' are; layers in none come one by one.
        batches: keywords or positions of the model's forward; some 128 texts of 2048 tokens are usual. Tokens that an
            `attention_mask` hides do not count, but by experts, which see what the router sends; of an encoder-decoder,
            nor do the decoder's at these places, if it has as many. All are held in memory, and so is a CPU copy of the
            pruned weights.
        method: `wanda` or `sparsegpt`.
        progress: is told which block is at work.
        **keys: those of `PruningConfig`: a `pattern`, `N:M` or `1x1`, `target_sparsity` for 1x1, `excluded_op_names`.

    Returns:
        The report that `Pruner.report` gives.

    Raises:
        PruningError: an argument that does not fit, or layers that see no input or such as are not finite; the weights
            are as they were, after any error.
    """
    if method not in METHODS:
        raise PruningError(f"method: want {' or '.join(METHODS)}, got {method!r}")
    refused = {*SCHEDULE, "pruning_configs", "pruning_scope", "lock_init_sparsity"} & keys.keys()
    if refused:
        raise PruningError(f"{min(refused)}: prune_one_shot prunes once, each layer alike; leave it out")
    keys = {"pruning_op_types": ["Linear"], **keys}
    if keys["pruning_op_types"] != ["Linear"]:
        raise PruningError(f"pruning_op_types: want ['Linear'] for {method}, got {keys['pruning_op_types']!r}")
    (group,) = (config := PruningConfig(pruning_type="magnitude", start_step=0, end_step=0, **keys)).groups
    pattern = group.pattern
    if not pattern.is_nm and (pattern.n, pattern.m) != (1, 1):
        raise PruningError(f"pattern: want N:M or 1x1 for {method}, got {keys.get('pattern')!r}")
    if pattern.is_nm and group.target_sparsity != 1 - pattern.n / pattern.m:
        raise PruningError(f"target_sparsity: want {1 - pattern.n / pattern.m} for {keys['pattern']}, or leave it out")
    hidden = [weight.name for weight in named_weights(model) if isinstance(weight.module, (nn.RNNBase, nn.RNNCellBase))]
    hidden = [name for name in hidden if not is_named(group, name)]
    pruner = Pruner(model, config.excluding(*map(exact, hidden)))
    if group.target_sparsity is None:
        raise PruningError(f"{group.goal}: is for prune_once and Pruner, in which layers compete; want target_sparsity")
    chosen = METHODS[method](pattern, group.target_sparsity)
    unreached = calibrate(model, pruner.layers, batches, chosen.see, chosen.prune, progress)
    notes = notes_of((name, "multiplies where calibration can't look, inside a recurrent layer") for name in hidden)
    if unreached:
        experts = listed([layer.name for layer in unreached])
        notes.append(f"pruned by size alone, since no token of the batches came to them: {experts}; give more batches")
        warnings.warn(notes[-1], stacklevel=2)
    names = [exact(layer.name) for layer in pruner.layers]
    locked = PruningConfig(
        pruning_type="pattern_lock", pattern=keys["pattern"], op_names=names,
        pruning_op_types=keys["pruning_op_types"], exclude_head=False,
    )  # fmt: skip
    done = Pruner(model, locked)
    done.start()
    report = done.report()
    return dataclasses.replace(report, notes=(*notes, *report.notes))

"""Prune a model's layers one by one, by what a calibration set shows or each to a sparsity of its own."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from trisparse.prune.config.config import PruningConfig
from trisparse.prune.config.group import OP_TYPES, GroupConfig
from trisparse.prune.errors import PruningError
from trisparse.prune.layers.left_out import is_named, listed, notes_of
from trisparse.prune.layers.modules import exact
from trisparse.prune.layers.weights import named_weights
from trisparse.prune.one_shot.calibrate import Block, calibrate
from trisparse.prune.one_shot.dsnot import DSnoT
from trisparse.prune.one_shot.layer_sparsity import Owl, given_sparsities
from trisparse.prune.one_shot.magnitude import prune_by_magnitude
from trisparse.prune.one_shot.method import Method
from trisparse.prune.one_shot.sparsegpt import SparseGPT
from trisparse.prune.one_shot.texts import text_batches
from trisparse.prune.one_shot.wanda import Wanda
from trisparse.prune.pruner.pruner import Pruner
from trisparse.prune.pruner.report import SparsityReport

MAGNITUDE = "magnitude"
CALIBRATED: dict[str, Callable[..., Method]] = {"wanda": Wanda, "sparsegpt": SparseGPT, "dsnot": DSnoT}


class Texts(NamedTuple):
    """What calibration batches are made of; see `text_batches`."""

    calibration: Any
    tokenizer: Any
    samples: int
    max_length: int | None
    column: str | None


@torch.no_grad()
def prune_layer_by_layer(
    model: nn.Module, method: str, options: Mapping[str, Any], config: PruningConfig, layer_sparsity: Any,
    has_target: bool, owl: Owl | None, source: Iterable[Any] | Texts | None, device: torch.device | str | None,
    progress: Callable[[str], None],
) -> SparsityReport:  # fmt: skip
    """What `prune_once` does for calibrated methods and for sparsities by layer.

    Args:
        model: to be pruned in place.
        method: one of `CALIBRATED`, or `magnitude`.
        options: of the method.
        config: one group, whose layers are pruned, and their target.
        layer_sparsity: None, a list, a mapping, or `owl` where `owl` is given.
        has_target: whether the group's target was asked for.
        owl: says how much of each block goes.
        source: batches or what they are made of; None where nothing looks at data.
        device: where blocks run.
        progress: is told which block is at work.

    Raises:
        PruningError: as `prune_once` says.
    """
    looks = method in CALIBRATED or owl is not None
    group = _only_group(method, looks, config)
    if layer_sparsity is not None and group.pattern.is_nm:
        raise PruningError(f"layer_sparsity: {group.pattern} says how much of each layer goes; leave it out")
    sparsities: dict[str, float] = {}
    chosen = CALIBRATED[method](group.pattern, sparsities, **options) if method in CALIBRATED else None
    hidden = _hidden(model, group) if looks else []
    layers = Pruner(model, PruningConfig.of_groups([group]).excluding(*map(exact, hidden))).layers
    if owl is None:
        sparsities.update(given_sparsities(layer_sparsity, layers, group, has_target))
    notes = notes_of((name, "multiplies where calibration can't look, inside a recurrent layer") for name in hidden)
    if looks:
        if isinstance(source, Texts):
            source, note = text_batches(model, *source)
            notes.append(note)
        elif source is None:
            raise PruningError(
                "batches: want a list or a loader of batches, got one NoneType; or give calibration and a tokenizer"
            )

        def begin(blocks: list[Block]) -> None:
            if owl is not None:
                sparsities.update(owl.sparsities(blocks, group))

        look = owl.look if owl is not None else None
        unreached = calibrate(model, layers, source, chosen, progress, look, begin, device)
        if unreached:
            experts = listed([layer.name for layer in unreached])
            notes.append(
                f"pruned by size alone, since no token of the batches came to them: {experts}; give more batches"
            )
            warnings.warn(notes[-1], stacklevel=2)
    if chosen is None:
        report = prune_by_magnitude(model, layers, sparsities, group)
    else:
        report = _report(model, [exact(layer.name) for layer in layers], group)
    return dataclasses.replace(report, notes=(*notes, *report.notes))


def _only_group(method: str, looks: bool, config: PruningConfig) -> GroupConfig:
    """The group, with the types that can be calibrated; PruningError for what no method goes layer by layer with."""
    if len(config.groups) > 1:
        raise PruningError(f"pruning_configs: {method} takes one group here, got {len(config.groups)}")
    (group,) = config.groups
    pattern = group.pattern
    if group.lock_init_sparsity:
        raise PruningError("lock_init_sparsity: has no meaning layer by layer; leave it out")
    if looks and group.pruning_op_types not in (("Linear",), OP_TYPES):
        raise PruningError(f"pruning_op_types: want ['Linear'] for {method}, got {list(group.pruning_op_types)}")
    if method != MAGNITUDE and not pattern.is_nm and (pattern.n, pattern.m) != (1, 1):
        raise PruningError(f"pattern: want N:M or 1x1 for {method}, got {str(pattern)!r}")
    if group.target_sparsity is None:
        raise PruningError(f"{group.goal}: is for what competes across layers; want target_sparsity for {method}")
    if pattern.is_nm and group.target_sparsity != 1 - pattern.n / pattern.m:
        raise PruningError(f"target_sparsity: want {1 - pattern.n / pattern.m} for {pattern}, or leave it out")
    return dataclasses.replace(group, pruning_op_types=("Linear",)) if looks else group


def _hidden(model: nn.Module, group: GroupConfig) -> list[str]:
    """Weights of recurrent layers, which nobody named."""
    found = [weight.name for weight in named_weights(model) if isinstance(weight.module, (nn.RNNBase, nn.RNNCellBase))]
    return [name for name in found if not is_named(group, name)]


def _report(model: nn.Module, names: list[str], group: GroupConfig) -> SparsityReport:
    locked = PruningConfig(
        pruning_type="pattern_lock", pattern=str(group.pattern), op_names=names,
        pruning_op_types=group.pruning_op_types, exclude_head=False,
    )  # fmt: skip
    done = Pruner(model, locked)
    done.start()
    return done.report()

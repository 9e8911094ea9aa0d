"""Find the layers of a model that a config names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence, Set
from typing import NamedTuple

from torch import nn

from trisparse.prune.config.group import GroupConfig
from trisparse.prune.config.layer_names import finds
from trisparse.prune.config.patterns import Pattern
from trisparse.prune.errors import PruningError
from trisparse.prune.layers.find_heads import Chosen, find_heads
from trisparse.prune.layers.foreign import foreign_weight
from trisparse.prune.layers.layer import Layer
from trisparse.prune.layers.left_out import is_named, listed, notes_of, reasons_to_leave
from trisparse.prune.layers.modules import bare_modules, classes_by_name, exact, find_head, is_of_peft
from trisparse.prune.layers.shards import check_wrappers
from trisparse.prune.layers.weights import Weight, named_weights
from trisparse.sparse_ops.checks import DTYPES
from trisparse.sparse_ops.choosing.units import matrix_shape


class Found(NamedTuple):
    """The layers of each group, in the model's order, and a line on each kind of layer that was left dense."""

    groups: list[list[Layer]]
    notes: list[str]


def find_layers(model: nn.Module, groups: Sequence[GroupConfig]) -> Found:
    """The layers of each group; a weight that modules share comes once.

    Left out, unless an expression of `op_names` names them: weights that an embedding or the like holds too, adapters
    and the frozen copies beside them, and of N:M convolutions whose input channels M does not divide.

    Raises:
        PruningError: a group without layers, a layer in two groups, one that its pattern does not divide, or whose
            weight is packed, quantized or not there.
    """
    check_wrappers(model)
    found_head = find_head(model)
    head = found_head[1] if found_head else None
    weights = list(named_weights(model))
    leave = reasons_to_leave(model, weights)
    sharers: dict[tuple[int, int | None], list[Weight]] = {}
    for weight in weights:
        sharers.setdefault((id(weight.tensor), weight.part), []).append(weight)
    owner: dict[tuple[int, int | None], int] = {}
    found: list[list[Layer]] = []
    left: dict[str, str] = {}
    skipped: list[tuple[str, str, str]] = []  # pattern, name, reason
    for index, config in enumerate(groups):
        _check_numbers(model, config, head)
        stays = {
            weight.name: leave[number].reason
            for number, weight in enumerate(weights)
            if number in leave
            and _matches(config, weight, head)
            and not is_named(config, weight.name, leave[number].beside)
        }
        left |= stays
        chosen = (
            find_heads(model, config, index, weights, stays)
            if config.pattern.is_heads
            else (
                Chosen(weight, config.pattern)
                for weight in weights
                if _matches(config, weight, head) and weight.name not in stays
            )
        )
        layers: list[Layer] = []
        for weight, pattern, attention, bias in chosen:
            layer = _layer(weight, pattern, attention, bias)
            if (reason := _undivided_conv(layer)) and not is_named(config, weight.name):
                left[weight.name] = f"M of {config.pattern} does not divide ({reason})"
                continue
            place = id(layer.weight), layer.part
            _check_sharers(config, weight, sharers[place], head)
            is_new = place not in owner
            before = owner.setdefault(place, index)
            if before != index:
                raise PruningError(
                    f"pruning_configs: {layer.name} is in groups {before} and {index}; "
                    f"add {exact(layer.name)!r} to excluded_op_names of one"
                )
            if is_new:
                layers.append(layer)
        misfits = _misfits(layers)
        if config.on_misfit == "skip":
            skipped += [(str(config.pattern), name, reason) for name, reason in misfits]
            names = {name for name, _ in misfits}
            for layer in layers:
                if layer.name in names:
                    del owner[id(layer.weight), layer.part]  # another group may have it
            layers, misfits = [layer for layer in layers if layer.name not in names], []
        if not layers:
            raise PruningError("; ".join([_no_layers(config, index, weights, head, left), *_skip_notes(skipped)]))
        if misfits:
            raise PruningError(
                f"pattern: {config.pattern} does not divide {', '.join(f'{n} ({why})' for n, why in misfits)}; "
                f"add to excluded_op_names: {[exact(n) for n, _ in misfits]}, or leave them dense by on_misfit: skip"
            )
        found.append(layers)
    pruned = {layer.name for layers in found for layer in layers}
    notes = notes_of((name, reason) for name, reason in left.items() if name not in pruned)
    return Found(found, [*notes, *_skip_notes([entry for entry in skipped if entry[1] not in pruned])])


def _is_excluded(config: GroupConfig, name: str, classes: Set[str], is_head: bool) -> bool:
    return (config.exclude_head and is_head) or any(finds(e, name, classes) for e in config.excluded_op_names)


def _is_wanted(config: GroupConfig, name: str, classes: Set[str], is_head: bool) -> bool:
    is_found = any(finds(expression, name, classes) for expression in config.op_names)
    return is_found and not _is_excluded(config, name, classes, is_head)


def _matches(config: GroupConfig, weight: Weight, head: nn.Module | None) -> bool:
    is_head = weight.module is head
    return weight.op_type in config.pruning_op_types and _is_wanted(config, weight.name, weight.classes, is_head)


def _check_numbers(model: nn.Module, config: GroupConfig, head: nn.Module | None) -> None:
    """PruningError for a wanted layer that is packed, quantized by another library, or holds an adapter merged."""
    classes = classes_by_name(model)
    for name, module in bare_modules(model):
        if (reason := foreign_weight(module)) and _is_wanted(config, name, classes[name], module is head):
            raise PruningError(f"{name or 'model'}: {reason}, or add {exact(name)!r} to excluded_op_names")
        base = f"{name}.base_layer"
        merged = is_of_peft(module, "BaseTunerLayer") and getattr(module, "merged", False) and base in classes
        if merged and _is_wanted(config, base, classes[base], False):
            raise PruningError(
                f"{base}: holds its adapter merged, and zeros would be gone once that is unmerged; call "
                "unmerge_adapter() or merge_and_unload() before"
            )


def _layer(weight: Weight, pattern: Pattern, attention: str | None, bias: str | None) -> Layer:
    tensor = weight.tensor
    if tensor is None:
        raise PruningError(
            f"{weight.name}: its weight is no plain parameter (parametrized, or masked by torch.nn.utils.prune?); "
            f"make it one again (torch.nn.utils.prune.remove), or add {exact(weight.name)!r} to excluded_op_names"
        )
    if isinstance(tensor, nn.parameter.UninitializedParameter) or tensor.is_meta or tensor.numel() == 0:
        raise PruningError(
            f"{weight.name}: its weight holds no numbers (uninitialized, on the meta device, or empty); give it some "
            f"before, or add {exact(weight.name)!r} to excluded_op_names"
        )
    if tensor.dtype not in DTYPES:
        raise PruningError(
            f"{weight.name}: its weight is {tensor.dtype}, which no score is defined for; add {exact(weight.name)!r} "
            "to excluded_op_names"
        )
    layer = Layer(
        weight.name, weight.module, tensor, pattern, weight.layout, weight.parameter, weight.part, attention, bias
    )
    if pattern.sizes is None:
        return layer
    shape = layer.rows.total, matrix_shape(layer.view)[1]
    return dataclasses.replace(layer, pattern=pattern.of_layer(layer.name, shape))


def _undivided_conv(layer: Layer) -> str | None:
    is_conv = layer.layout.startswith("conv") and layer.pattern.is_nm
    return layer.pattern.misfit(layer.view, layer.rows.total) if is_conv else None


def _check_sharers(config: GroupConfig, weight: Weight, sharers: Sequence[Weight], head: nn.Module | None) -> None:
    """PruningError if one of the layers with the same weight is excluded."""
    for other in sharers:
        if other is not weight and _is_excluded(config, other.name, other.classes, other.module is head):
            raise PruningError(
                f"excluded_op_names: {other.name} is left out, but {weight.name} has the same weight; "
                f"add {exact(weight.name)!r} too"
            )


def _misfits(layers: Sequence[Layer]) -> list[tuple[str, str]]:
    """Name and reason of the layers that their pattern does not divide."""
    found = []
    for layer in layers:
        reason = layer.pattern.misfit(layer.view, layer.rows.total) or layer.rows.misfit(layer.block[0])
        if layer.pattern.kind == "column" and getattr(layer.module, "groups", 1) > 1:
            reason = f"{layer.module.groups} groups share no input channel"
        if reason:
            found.append((layer.name, reason))
    return found


def _skip_notes(skipped: Sequence[tuple[str, str, str]]) -> list[str]:
    patterns = dict.fromkeys(pattern for pattern, *_ in skipped)
    said = {own: [f"{name} ({reason})" for pattern, name, reason in skipped if pattern == own] for own in patterns}
    return [f"left dense, since {pattern} does not divide them: {listed(names)}" for pattern, names in said.items()]


def _no_layers(
    config: GroupConfig, index: int, weights: Sequence[Weight], head: nn.Module | None, left: dict[str, str]
) -> str:
    typed = [
        weight.name
        for weight in weights
        if weight.op_type in config.pruning_op_types and not (config.exclude_head and weight.module is head)
    ]
    have = ", ".join(typed[:5]) + (f" and {len(typed) - 5} more" if len(typed) > 5 else "") or "none"
    excluded_head = config.exclude_head and head is not None
    return (
        f"op_names: {list(config.op_names)} with excluded_op_names {list(config.excluded_op_names)} finds no layer "
        f"for group {index}; the model's {' and '.join(config.pruning_op_types)} layers are: {have}"
        + ("; the head is left out, exclude_head: false takes it in" if excluded_head else "")
        + "".join(f"; {note}" for note in notes_of(left.items()))
    )

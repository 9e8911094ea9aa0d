"""Find the layers of a model that a config names."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from trisparse.prune.config.group import GroupConfig
from trisparse.prune.config.patterns import Pattern
from trisparse.prune.errors import PruningError
from trisparse.prune.pruner.shards import Rows, check_wrappers, count_zeros, local, reshard, rows_of
from trisparse.sparse_ops.choosing.units import grid_shape

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def is_hf_conv1d(module: nn.Module) -> bool:
    """Whether this is transformers' `Conv1D`, a linear layer with weight `[in, out]`; imports nothing."""
    return any(c.__name__ == "Conv1D" and c.__module__.startswith("transformers.") for c in type(module).__mro__)


def op_type(module: nn.Module) -> str | None:
    """`Linear`, `Conv` or None for a module that can't be pruned."""
    if isinstance(module, nn.Linear) or is_hf_conv1d(module):
        return "Linear"
    return "Conv" if isinstance(module, _CONVS) else None


@dataclass(frozen=True, eq=False)
class Layer:
    """One weight that is pruned, with its pattern. `layout` is what `Pattern.unit_view` takes."""

    name: str
    module: nn.Module
    weight: nn.Parameter
    pattern: Pattern
    layout: str

    def unit_view(self, tensor: Tensor) -> Tensor:
        """View a tensor of the weight's shape as the pattern's units see it."""
        return self.pattern.unit_view(tensor, self.layout)

    @functools.cached_property
    def rows(self) -> Rows:
        """Which rows of the unit view this process holds."""
        return rows_of(self.name, self.weight, self.pattern.row_axis(self.layout))

    @property
    def view(self) -> Tensor:
        """Of what this process holds of the weight."""
        return self.unit_view(local(self.weight.detach()))

    @property
    def grad_view(self) -> Tensor | None:
        grad = self.weight.grad
        return None if grad is None else self.unit_view(local(grad))

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


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another, under all the names that this has."""
    old = model.get_submodule(name)
    for parent in list(model.modules()):
        for child, found in list(parent._modules.items()):
            if found is old:
                setattr(parent, child, module)


def unwrap(model: nn.Module) -> nn.Module:
    """The bare model inside `torch.compile` and data-parallel wrappers; PruningError for what is no model."""
    if not isinstance(model, nn.Module):
        raise PruningError(f"model: want an nn.Module, got {type(model).__name__}")
    while True:
        if isinstance(model, _WRAPPERS):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        else:
            return model


def bare_modules(model: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Modules and their names, as if no wrapper were around the model or in it; a shared module comes twice."""
    model = unwrap(model)
    yield name, model
    for child_name, child in model.named_children():
        yield from bare_modules(child, f"{name}.{child_name}" if name else child_name)


def named_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Prunable modules of the bare model by the names they have in it."""
    return ((name, module) for name, module in bare_modules(model) if op_type(module))


def find_head(model: nn.Module) -> tuple[str, nn.Module] | None:
    """Name and module of the last Linear or Conv if nothing but Dropout comes after it, else None."""
    leaves = [(k, m) for k, m in bare_modules(model) if not list(m.children()) and not isinstance(m, nn.Dropout)]
    return leaves[-1] if leaves and op_type(leaves[-1][1]) else None


def _is_excluded(config: GroupConfig, name: str, module: nn.Module, head: nn.Module | None) -> bool:
    return (config.exclude_head and module is head) or any(re.search(p, name) for p in config.excluded_op_names)


def _matches(config: GroupConfig, name: str, module: nn.Module, head: nn.Module | None) -> bool:
    return (
        op_type(module) in config.pruning_op_types
        and any(re.search(p, name) for p in config.op_names)
        and not _is_excluded(config, name, module, head)
    )


def _layer(name: str, module: nn.Module, pattern: Pattern) -> Layer:
    weight = module._parameters.get("weight")
    if weight is None:
        raise PruningError(
            f"{name}: its weight is no plain parameter (is it parametrized?); prune it before, or add "
            f"{exact(name)!r} to excluded_op_names"
        )
    if isinstance(weight, nn.parameter.UninitializedParameter) or weight.is_meta or weight.numel() == 0:
        raise PruningError(
            f"{name}: its weight holds no numbers (uninitialized, on the meta device, or empty); give it some before, "
            f"or add {exact(name)!r} to excluded_op_names"
        )
    layout = "transposed" if is_hf_conv1d(module) else "conv" if op_type(module) == "Conv" else "linear"
    return Layer(name, module, weight, pattern, layout)


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


def exact(name: str) -> str:
    """The regular expression that finds this layer and no other."""
    return f"^{re.escape(name)}$"


def find_layers(model: nn.Module, groups: Sequence[GroupConfig]) -> list[list[Layer]]:
    """The layers of each group, in the model's order; a weight that modules share comes once.

    Raises:
        PruningError: a group without layers, a layer in two groups, or one that its pattern does not divide.
    """
    check_wrappers(model)
    found_head = find_head(model)
    head = found_head[1] if found_head else None
    names = list(named_layers(model))
    owner: dict[int, int] = {}
    found: list[list[Layer]] = []
    for index, config in enumerate(groups):
        layers: list[Layer] = []
        for name, module in names:
            if not _matches(config, name, module, head):
                continue
            layer = _layer(name, module, config.pattern)
            for other, sharer in names:
                if sharer._parameters.get("weight") is layer.weight and _is_excluded(config, other, sharer, head):
                    raise PruningError(
                        f"excluded_op_names: {other} is left out, but {name} has the same weight; "
                        f"add {exact(name)!r} too"
                    )
            before = owner.setdefault(id(layer.weight), index)
            if before != index:
                raise PruningError(
                    f"pruning_configs: {name} is in groups {before} and {index}; "
                    f"add {exact(name)!r} to excluded_op_names of one"
                )
            if all(layer.weight is not other.weight for other in layers):
                layers.append(layer)
        if not layers:
            raise PruningError(_no_layers(config, index, names, head))
        if misfits := _misfits(layers):
            listed = ", ".join(f"{name} ({reason})" for name, reason in misfits)
            raise PruningError(
                f"pattern: {config.pattern} does not divide {listed}; "
                f"add to excluded_op_names: {[exact(name) for name, _ in misfits]}"
            )
        found.append(layers)
    return found


def _no_layers(config: GroupConfig, index: int, names: Sequence[tuple[str, nn.Module]], head: nn.Module | None) -> str:
    typed = [
        name for name, m in names if op_type(m) in config.pruning_op_types and not (config.exclude_head and m is head)
    ]
    have = ", ".join(typed[:5]) + (f" and {len(typed) - 5} more" if len(typed) > 5 else "") or "none"
    excluded_head = config.exclude_head and head is not None
    return (
        f"op_names: {list(config.op_names)} with excluded_op_names {list(config.excluded_op_names)} finds no layer "
        f"for group {index}; the model's {' and '.join(config.pruning_op_types)} layers are: {have}"
        + ("; the head is left out, exclude_head: false takes it in" if excluded_head else "")
    )


def count_parameters(model: nn.Module) -> tuple[int, int, int, int]:
    """Zeros and weights of all Linear and Conv, zeros and numbers of all parameters; shared ones once.

    Over all processes, all of which make this call, where parameters are sharded.
    """
    reshard(model)
    modules = {id(p): p for _, m in named_layers(model) if (p := m._parameters.get("weight")) is not None}
    everything = {id(p): p for p in unwrap(model).parameters()}

    def count(tensors: dict[int, nn.Parameter]) -> tuple[int, int]:
        zeros = sum(count_zeros(p.detach()) for p in tensors.values())
        return zeros, sum(p.numel() for p in tensors.values())

    return (*count(modules), *count(everything))

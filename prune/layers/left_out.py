"""Weights that a pattern could be laid over and that are left dense all the same, unless their user names them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import nn

from trisparse.prune.config.group import GroupConfig
from trisparse.prune.config.layer_names import finds
from trisparse.prune.layers.modules import bare_modules, is_of_peft
from trisparse.prune.layers.shards import is_sharded
from trisparse.prune.layers.weights import Weight, matrices

_NOBODY = "~"  # no module has this name: what finds it finds all
_SHOWN = 3


def is_named(config: GroupConfig, name: str, beside: Sequence[str] = ()) -> bool:
    """Whether an expression of `op_names` finds this one, that does not find just anything, nor what is `beside` it."""
    return any(
        finds(expression, name) and not any(finds(expression, other) for other in (_NOBODY, *beside))
        for expression in config.op_names
    )


class LeftOut(NamedTuple):
    """Why a weight is left out, and what an expression must not find, too, to name it."""

    reason: str
    beside: tuple[str, ...] = ()


def reasons_to_leave(model: nn.Module, weights: Sequence[Weight]) -> dict[int, LeftOut]:
    """Which weights are left out unless they are named, by their number in `weights`."""
    adapters = adapters_of(model)
    holders = _other_holders(model, weights)
    found = {}
    for number, weight in enumerate(weights):
        if id(weight.module) in adapters:
            found[number] = LeftOut("is an adapter or a frozen copy", (adapters[id(weight.module)],))
        elif (place := _place(weight.tensor)) in holders:
            found[number] = LeftOut(f"has its weight in common with {holders[place]}")
    return found


def _place(parameter: nn.Parameter | None) -> int:
    """Where a parameter's numbers lie, which two may have in common; its own identity where there are none."""
    lazy = parameter is None or isinstance(parameter, nn.parameter.UninitializedParameter)
    return id(parameter) if lazy or is_sharded(parameter) else parameter.data_ptr() or id(parameter)  # type: ignore


def _other_holders(model: nn.Module, weights: Sequence[Weight]) -> dict[int, str]:
    """Parameters that modules hold, too, which do not multiply by them, an embedding above all: id -> which."""
    held = {(id(weight.module), weight.parameter) for weight in weights}
    mine = {_place(weight.tensor) for weight in weights}
    return {
        _place(parameter): f"{name} ({type(module).__name__})"
        for name, module in bare_modules(model)
        for own, parameter in module._parameters.items()
        if parameter is not None and _place(parameter) in mine and (id(module), own) not in held
    }


def adapters_of(model: nn.Module) -> dict[int, str]:
    """Modules that belong to adapters, or are frozen copies beside them: id -> name of what they adapt.

    PEFT's are known by its base classes. Others by their structure: a frozen weight, and beside or below it in one
    module two linear layers that train and make a product of low rank of the same size.
    """
    found: dict[int, str] = {}
    for name, module in bare_modules(model):
        if is_of_peft(module, "BaseTunerLayer"):
            inside = [child for own, child in module.named_children() if own != "base_layer"]
        elif is_of_peft(module, "AuxiliaryTrainingWrapper"):
            inside = [child for own, child in module.named_children() if own == "original_module"]
        elif is_of_peft(module, "PeftModel"):
            inside = [child for own, child in module.named_children() if own != "base_model"]
        else:
            inside = _low_rank(module)
        for child in inside:
            found.update((id(inner), name) for inner in child.modules())
    return found


def _low_rank(module: nn.Module) -> list[nn.Module]:
    children = [child for child in module.children() if isinstance(child, nn.Linear)]
    linear: list[Any] = [child for child in children if "weight" in dict(matrices(child, 2))]
    own = dict(matrices(module, 2)).get("weight")
    frozen = [child.weight.shape for child in linear if not child.weight.requires_grad]
    frozen += [own.shape] if own is not None and not own.requires_grad else []
    trained = [child for child in linear if child.weight.requires_grad]
    pairs = [(down, up) for down in trained for up in trained if down is not up]
    for child in module.children():
        inner: Any = list(child.children())
        if isinstance(child, nn.Sequential) and len(inner) == 2 and all(isinstance(part, nn.Linear) for part in inner):
            pairs.append((inner[0], inner[1]))
    for high, wide in frozen:
        for down, up in pairs:
            is_product = (down.in_features, up.out_features) == (wide, high) and down.out_features == up.in_features
            if is_product and down.out_features < min(high, wide):
                return [down, up]
    return []


def notes_of(left: Iterable[tuple[str, str]]) -> list[str]:
    """One line a reason, for names and reasons in any order."""
    names = defaultdict(list)
    for name, reason in left:
        names[reason].append(name)
    return [f"left dense unless op_names names it: {listed(found)}, which {reason}" for reason, found in names.items()]


def listed(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")

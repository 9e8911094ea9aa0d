"""Weights that a pattern could be laid over and that are left dense all the same, unless their user names them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from trisparse.prune.config.group import GroupConfig
from trisparse.prune.pruner.layers import bare_modules
from trisparse.prune.pruner.weights import Weight

_ANY = {"", ".", ".*", ".+", "^.*$", "^.*", ".*$"}  # expressions that name no layer
_SHOWN = 3


def is_named(config: GroupConfig, name: str) -> bool:
    """Whether an expression of `op_names` that does not find every layer finds this one."""
    return any(pattern not in _ANY and re.search(pattern, name) for pattern in config.op_names)


def reasons_to_leave(model: nn.Module, weights: Sequence[Weight]) -> dict[int, str]:
    """Why weights are left out unless they are named: number in `weights` -> reason."""
    adapters = adapters_of(model)
    holders = _other_holders(model, weights)
    found = {}
    for number, weight in enumerate(weights):
        if id(weight.module) in adapters:
            found[number] = adapters[id(weight.module)]
        elif id(weight.tensor) in holders:
            found[number] = f"has its weight in common with {holders[id(weight.tensor)]}"
    return found


def _other_holders(model: nn.Module, weights: Sequence[Weight]) -> dict[int, str]:
    """Parameters that modules hold, too, which do not multiply by them, an embedding above all: id -> which."""
    held = {(id(weight.module), weight.parameter) for weight in weights}
    mine = {id(weight.tensor) for weight in weights}
    return {
        id(parameter): f"{name} ({type(module).__name__})"
        for name, module in bare_modules(model)
        for own, parameter in module._parameters.items()
        if parameter is not None and id(parameter) in mine and (id(module), own) not in held
    }


def adapters_of(model: nn.Module) -> dict[int, str]:
    """Modules that belong to adapters, or are frozen copies beside them: id -> what they are.

    PEFT's are known by its base classes. Others by their structure: a frozen linear layer, and beside it in one module
    two that train and make a product of low rank of the same size.
    """
    found: dict[int, str] = {}
    for _, module in bare_modules(model):
        if is_tuner(module):
            inside = [child for name, child in module.named_children() if name != "base_layer"]
        elif _is_of_peft(module, "AuxiliaryTrainingWrapper"):
            inside = [child for name, child in module.named_children() if name == "original_module"]
        elif _is_of_peft(module, "PeftModel"):
            inside = [child for name, child in module.named_children() if name != "base_model"]
        else:
            inside = _low_rank(module)
        for child in inside:
            found.update((id(inner), "is an adapter or a frozen copy") for inner in child.modules())
    return found


def is_tuner(module: nn.Module) -> bool:
    """Whether this is a layer of PEFT, with the layer that it adapts as `base_layer`."""
    return _is_of_peft(module, "BaseTunerLayer")


def _is_of_peft(module: nn.Module, name: str) -> bool:
    return any(c.__name__ == name and c.__module__.split(".")[0] == "peft" for c in type(module).__mro__)


def _low_rank(module: nn.Module) -> list[nn.Module]:
    linear: list[Any] = [child for child in module.children() if isinstance(child, nn.Linear)]
    frozen = [child for child in linear if not child.weight.requires_grad]
    trained = [child for child in linear if child.weight.requires_grad]
    for base in frozen:
        rank = min(base.in_features, base.out_features)
        for down in trained:
            for up in trained:
                is_product = (down.in_features, up.out_features) == (base.in_features, base.out_features)
                if down is not up and is_product and down.out_features == up.in_features < rank:
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

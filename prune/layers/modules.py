"""The modules of a model: what is inside wrappers, which are linear or convolutions, which is the head."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from trisparse.prune.config.layer_names import names_of_class
from trisparse.prune.errors import PruningError

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def is_hf_conv1d(module: nn.Module) -> bool:
    """Whether this is transformers' `Conv1D`, a linear layer with weight `[in, out]`; imports nothing."""
    return any(c.__name__ == "Conv1D" and c.__module__.startswith("transformers.") for c in type(module).__mro__)


def op_type(module: nn.Module) -> str | None:
    """`Linear`, `Conv` or None for any other module."""
    if isinstance(module, nn.Linear) or is_hf_conv1d(module):
        return "Linear"
    return "Conv" if isinstance(module, _CONVS) else None


def is_plain_conv(module: Any) -> bool:
    """Whether this is a convolution whose every output reads all inputs, with zeros around them."""
    return op_type(module) == "Conv" and module.groups == 1 and module.padding_mode == "zeros"


def is_packable(module: Any) -> bool:
    """Whether a packed layer can do what this does: linear ones, and convolutions without groups."""
    return op_type(module) == "Linear" or is_plain_conv(module)


def interference(module: nn.Module) -> str:
    """What makes a module do other than its class says, or an empty string."""
    if any(getattr(module, name) for name in _HOOKS):
        return "it has hooks"
    return "its forward was replaced" if "forward" in vars(module) else ""


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


def classes_by_name(model: nn.Module) -> dict[str, frozenset[str]]:
    """Name of each module -> names of its own classes and of those of the modules that it lies in."""
    found: dict[str, frozenset[str]] = {}
    for name, module in bare_modules(model):  # what is outside comes first
        around = found.get(name.rpartition(".")[0], frozenset()) if name else frozenset()
        found[name] = around | names_of_class(type(module))
    return found


def find_head(model: nn.Module) -> tuple[str, nn.Module] | None:
    """Name and module of the last Linear or Conv if nothing but Dropout comes after it, else None.

    In a model of transformers that has a base model what is outside of that comes after it, in whatever order the parts
    were made.
    """
    bare: Any = unwrap(model)
    if is_of_peft(bare, "PeftModel"):
        bare = bare.get_base_model()
    base = bare._modules.get(getattr(bare, "base_model_prefix", ""))
    inside = {id(module) for module in base.modules()} if base is not None else set()
    beside = {
        id(inner)
        for _, module in bare_modules(model)
        if is_of_peft(module, "BaseTunerLayer")
        for own, child in module.named_children()
        if own != "base_layer"
        for inner in child.modules()
    }
    leaves = [
        (name, module)
        for name, module in bare_modules(model)
        if not list(module.children()) and not isinstance(module, nn.Dropout) and id(module) not in beside
    ]
    leaves.sort(key=lambda leaf: id(leaf[1]) not in inside)
    is_layer = bool(leaves) and (op_type(leaves[-1][1]) is not None or isinstance(leaves[-1][1], _ConvTransposeNd))
    return leaves[-1] if is_layer else None


def is_of_peft(module: nn.Module, name: str) -> bool:
    """Whether a module is of this base class of PEFT; imports nothing."""
    return any(c.__name__ == name and c.__module__.split(".")[0] == "peft" for c in type(module).__mro__)


def exact(name: str) -> str:
    """The regular expression that finds this layer and no other."""
    return f"^{re.escape(name)}$"

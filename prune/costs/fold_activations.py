"""Activations that a packed layer applies in its own product, which spares a pass over its outputs."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from trisparse.prune.layers.modules import interference, replace_module
from trisparse.sparse_ops import Linear24, LinearBlocks
from trisparse.sparse_ops.activations import ACTIVATIONS


class Folded(nn.Module):
    """Stands where an activation was: passes on what the packed layer before it has activated.

    Once that layer is no longer there, or activates nothing, the activation is back.
    """

    _layer: tuple[nn.Module, str]

    def __init__(self, activation: nn.Module, parent: nn.Module, layer: str) -> None:
        super().__init__()
        self.activation = activation
        self.__dict__["_layer"] = parent, layer  # by name, since it may be replaced; not as a child
        self.training = activation.training

    def forward(self, x: Tensor) -> Tensor:
        parent, layer = self._layer
        return x if getattr(parent._modules.get(layer), "activation", "none") != "none" else self.activation(x)


def fold_activations(model: nn.Module, wanted: Mapping[str, str] | None = None) -> list[str]:
    """Let packed layers apply the activation that alone reads their outputs, in place.

    What reads them is asked of `torch.fx`, module by module; where a forward can't be followed, nothing changes.

    Args:
        model: with packed layers.
        wanted: only these layers, with their activations; all unless given.

    Returns:
        The names of the layers that do so now.
    """
    held = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    found = []
    for prefix, parent in list(model.named_modules()):
        layers: dict[str, Any] = {
            name: child
            for name, child in parent.named_children()
            if isinstance(child, (Linear24, LinearBlocks))
            and held[id(child)] == 1
            and not interference(child)
            and (wanted is None or _join(prefix, name) in wanted)
        }
        kinds = {name: kind for name, child in parent.named_children() if layers and (kind := _kind(child)) != "none"}
        for name, act in _pairs(parent, layers, kinds) if kinds else ():
            path = _join(prefix, name)
            if wanted is None or wanted[path] == kinds[act]:
                setattr(parent, act, Folded(getattr(parent, act), parent, name))
                layers[name].activate(kinds[act])
                found.append(path)
    return found


def unfold_activations(model: nn.Module) -> None:
    """Put activations back to where they were, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Folded):
            replace_module(model, name, module.activation)
        elif isinstance(module, (Linear24, LinearBlocks)):
            module.activate("none")


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _kind(module: nn.Module) -> str:
    """Which activation a module is, by what it does; `none` for all else."""
    if interference(module) or [*module.children(), *module.parameters(), *module.buffers()]:
        return "none"
    far = torch.tensor([-1e30, -1e4, -100.0, 100.0, 1e4, 1e30], dtype=torch.float32, device="cpu")
    x = torch.cat([torch.linspace(-14, 14, 1121, dtype=torch.float32, device="cpu"), far])
    try:
        y = copy.copy(module).eval()(x.clone())
    except Exception:  # whatever a forward raises that wants other inputs
        return "none"
    if not isinstance(y, Tensor) or y.shape != x.shape:
        return "none"
    near = (kind for kind, want in ACTIVATIONS.items() if torch.allclose(y, want(x), rtol=1e-5, atol=1e-5))
    return next(near, "none")


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _pairs(parent: nn.Module, layers: Mapping[str, Any], kinds: Mapping[str, str]) -> list[tuple[str, str]]:
    """Layers and activations of a module, by name, that are called once each, one on nothing but the other's output."""
    try:
        graph = _Tracer().trace(copy.copy(parent))  # a copy, for what a forward may set
    except Exception:  # a forward that can't be followed
        return []
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times = Counter(node.target for node in calls)
    return [
        (str(node.target), str(reader.target))
        for node in calls
        if node.target in layers and times[node.target] == 1 and len(node.users) == 1
        for reader in node.users
        if reader.op == "call_module" and reader.target in kinds and times[reader.target] == 1
        and reader.args == (node,) and not reader.kwargs
    ]  # fmt: skip

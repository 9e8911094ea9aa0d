"""Copies of pruned weights that optimizers keep and write back: schedule-free's, slow weights, masters, averages."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trisparse.prune.layers.shards import is_sharded, local
from trisparse.prune.pruner.group import PrunedGroup
from trisparse.prune.pruner.places import Places

_INSIDE = ("base_optimizer", "_base_optimizer", "base")  # of wrappers whose own step has no hooks, or needs a closure
_FULLY = 16  # calls, of which one looks at all layers where the last such look left nothing to decide
_ALIKE = 0.75  # squared cosine to the weights: a copy or an average points where they do, a momentum anywhere


def optimizer_chain(optimizer: Any) -> list[Any]:
    """The optimizer and what it wraps, outermost first; the last makes the step."""
    chain = [optimizer]
    while True:
        last = chain[-1]
        inner = getattr(last, "optimizer", None)
        for name in _INSIDE:
            if inner is None and isinstance(getattr(last, name, None), torch.optim.Optimizer):
                inner = getattr(last, name)
        if inner is None:
            return chain
        chain.append(inner)


class Copies:
    """Finds them among what the optimizers of a chain keep of each weight, so that masks are written there too.

    Which of it is a copy is decided once for all layers, by value, when it is first seen: it points where the weights
    do, as no momentum does. One that does by accident may be masked too, since a pruned weight needs no momentum.
    """

    def __init__(self, chain: Sequence[Any]) -> None:
        self._chain = chain
        self._copies: set[tuple[int, str]] = set()  # place in the chain, and name there
        self._others: list[set[str]] = [set() for _ in chain]  # names of what is no copy
        self._settled: tuple | None = None  # what the optimizers kept of one layer when nothing was left to decide
        self._calls = 0

    @torch.no_grad()
    def find(self, groups: Sequence[PrunedGroup]) -> None:
        """Tell each group its copies; to be called before masks are written, which hides what is alike."""
        self._calls += 1
        now = self._kept_of(groups[0].layers[0].weight) if groups and groups[0].layers else None
        if now is not None and now == self._settled and self._calls % _FULLY:
            return
        layers: dict[nn.Parameter, list[tuple[PrunedGroup, int]]] = {}
        for group in groups:
            for i, layer in enumerate(group.layers):
                layers.setdefault(layer.weight, []).append((group, i))
        found: dict[tuple[int, str], list[tuple[PrunedGroup, int, Tensor]]] = {}
        for key, weight, tensor in self._kept(layers.keys()):
            if _is_like(tensor, weight):
                found.setdefault(key, []).extend((group, i, tensor) for group, i in layers[weight])
            elif tensor is not None:
                self._others[key[0]].add(key[1])
        for group in groups:
            group.copies = []
        for key, copies in found.items():
            if key not in self._copies:
                self._decide(key, copies)
            if key in self._copies:
                for group, i, tensor in copies:
                    group.copies.append((i, tensor))
        is_open = any(name not in self._others[level] for level, name in found)
        self._settled = None if is_open else now

    def _kept_of(self, weight: nn.Parameter) -> tuple:
        """Names of what the optimizers keep of a weight, and of their groups' lists."""
        found: list[Any] = []
        for optimizer in self._chain:
            state = getattr(optimizer, "state", None)
            entries = state.get(weight) if isinstance(state, Mapping) else None
            found.append(tuple(entries) if isinstance(entries, Mapping) else None)
            found += [[name for name, values in group.items() if isinstance(values, list)]
                      for group in getattr(optimizer, "param_groups", ())]  # fmt: skip
        return tuple(found)

    def _kept(self, weights: Collection[nn.Parameter]) -> Iterator[tuple[tuple[int, str], nn.Parameter, Any]]:
        """What there is for each weight, in a state or in lists beside `params`, and where in the chain."""
        states: list[Any] = []
        groups: list[Any] = []
        for level, (optimizer, others) in enumerate(zip(self._chain, self._others, strict=True)):
            state = getattr(optimizer, "state", None)
            if isinstance(state, Mapping) and not any(state is known for known in states):
                states.append(state)
                for weight in weights:
                    entries = state.get(weight)
                    if isinstance(entries, Mapping) and not entries.keys() <= others:  # as on most steps
                        for name in entries.keys() - others:
                            yield (level, name), weight, entries[name]
            for group in getattr(optimizer, "param_groups", ()):
                if any(group is known for known in groups):
                    continue
                groups.append(group)
                for name, values in group.items():
                    if isinstance(values, list) and name not in others and name != "params":
                        for weight, value in zip(group["params"], values, strict=False):
                            if weight in weights:
                                yield (level, name), weight, value

    def _decide(self, key: tuple[int, str], copies: Sequence[tuple[PrunedGroup, int, Tensor]]) -> None:
        """By a few weights of each layer, those that are not zero; not at all as long as there are none."""
        dots = torch.zeros(3, dtype=torch.float64, device=copies[0][2].device)
        for group, i, tensor in copies:
            layer = group.layers[i]
            view = layer.view
            places = Places(view.shape, (view.shape[0], math.prod(view.shape[1:])), (1, 1), view.device).weights
            weight, kept = view[places].double(), layer.unit_view(layer.own(local(tensor.detach())))[places].double()
            kept = kept * (weight != 0)  # a copy of masked weights may not be masked itself
            dots += torch.stack([(kept * weight).sum(), kept.square().sum(), weight.square().sum()])
        both, kept_size, weight_size = dots.tolist()
        if kept_size > 0 and weight_size > 0:
            is_known = key[1] == "z" and any(callable(getattr(o, "eval", None)) for o in self._chain)  # schedule-free
            if is_known or (both > 0 and both**2 >= _ALIKE * kept_size * weight_size):
                self._copies.add(key)
            else:
                self._others[key[0]].add(key[1])


def _is_like(tensor: Any, weight: nn.Parameter) -> bool:
    """Whether masks of the weight fit, and can be written."""
    return (
        isinstance(tensor, Tensor)
        and (type(tensor) in (Tensor, nn.Parameter) or is_sharded(tensor))
        and tensor.is_floating_point()
        and tensor.shape == weight.shape
        and local(tensor).shape == local(weight).shape
        and tensor.device == weight.device
    )

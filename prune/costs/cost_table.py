"""What a model costs, layer by layer, and all that is no pruned layer: the table that a budget is met by."""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from trisparse.prune.config.budget import Budget
from trisparse.prune.costs.cost_curve import WHOLE, CostCurve, curve_of
from trisparse.prune.costs.fold_activations import fold_activations
from trisparse.prune.costs.layer_cost import SHARES, bytes_of, has_format, packed_copy, times_of
from trisparse.prune.costs.model_time import examples_of, model_ms, tokens_of
from trisparse.prune.errors import PruningError, one_line
from trisparse.prune.evaluating import evaluating
from trisparse.prune.layers.layer import Layer
from trisparse.prune.layers.modules import op_type, replace_module, unwrap
from trisparse.prune.speed import times_faster

_ROUNDS = 7  # in which a model and its copy are timed
Layers = Mapping[str, tuple[Layer, int]]  # by name, with their numbers of units


class CostTable(NamedTuple):
    """Costs as whole parts of the dense model's.

    Attributes:
        total: the dense model's cost in the budget's own unit: 1, bytes or weights.
        rest: of all that no group of the budget prunes.
        curves: name of each layer -> its cost.
    """

    total: float
    rest: int
    curves: dict[str, CostCurve]

    def to_state(self) -> dict[str, Any]:
        curves = {name: [list(curve.units), list(curve.costs)] for name, curve in self.curves.items()}
        return {"total": self.total, "rest": self.rest, "curves": curves}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> CostTable:
        curves = {name: CostCurve(*map(tuple, parts)) for name, parts in state["curves"].items()}
        return cls(state["total"], state["rest"], curves)


def make_table(model: nn.Module, budget: Budget, layers: Layers, example: Any, is_measured: bool) -> CostTable:
    """Look at every layer at some shares of pruned units.

    Raises:
        PruningError: a layer of a kind that no cost is known of, or no example to time the model with.
    """
    odd = [n for n, (layer, _) in layers.items() if op_type(layer.module) != "Linear" or layer.part is not None]
    if odd:
        raise PruningError(
            f"{budget.key}: costs are known of linear layers alone; add to excluded_op_names, or give a group with "
            f"target_sparsity: {', '.join(odd)}"
        )
    bare = unwrap(model)
    if budget.key == "target_speedup":
        return (_measured if is_measured else _expected)(bare, budget, layers, example)
    if budget.key == "target_bytes":
        total = sum(tensor.nbytes for tensor in (*bare.parameters(), *bare.buffers()))
        cost_of: Callable[[Layer, float], float] = bytes_of
    else:
        total = _linear_weights(bare)
        cost_of = _weights_left
    points = {name: _points(layer, units, partial(cost_of, layer), False) for name, (layer, units) in layers.items()}
    return _table(points, total, total - sum(found[0][1] for found in points.values()))


def _linear_weights(model: nn.Module) -> int:
    linear: list[Any] = [module for module in model.modules() if op_type(module) == "Linear"]
    return sum(module.weight.numel() for module in linear)


def _weights_left(layer: Layer, share: float) -> float:
    pattern = layer.pattern
    return layer.numel * (1 - share * (1 - pattern.n / pattern.m if pattern.is_nm else 1.0))


def _points(layer: Layer, units: int, cost: Callable[[float], float], is_timed: bool) -> list[tuple[int, float]]:
    """Pruned units and costs, at shares of them; N:M gains when no group is dense any more."""
    if layer.pattern.is_nm:
        return [(0, cost(0.0)), *([(units - 1, cost(0.0))] if units > 1 else []), (units, cost(1.0))]
    if is_timed:  # at round shares, which other layers have too, and no further
        found = {0: cost(0.0)} | {round(share * units): cost(share) for share in SHARES}
        first = next((n for n in sorted(found) if found[n] < found[0]), units)
        flat = {first - 1: found[0]} if first else {}  # where nothing is gained yet the layer stays dense
        return sorted((flat | found | {units: found[max(found)]}).items())
    return [(n, cost(n / units)) for n in sorted({0, units, *(round(share * units) for share in SHARES)})]


def _table(points: Mapping[str, list[tuple[int, float]]], total: float, rest: float) -> CostTable:
    curves = {name: curve_of(found, total) for name, found in points.items()}
    return CostTable(total, int(max(rest, 0.0) / total * WHOLE), curves)


def _expected(model: nn.Module, budget: Budget, layers: Layers, example: Any) -> CostTable:
    """By a static model, in which a dense layer takes as long as it has weights, and all else nothing."""

    def cost(layer: Layer, share: float) -> float:
        if not share or not has_format(layer):
            return layer.numel
        return layer.numel * statistics.fmean(p for _, p in times_of(layer, share, budget.tokens, False).values())

    points = {name: _points(layer, units, partial(cost, layer), True) for name, (layer, units) in layers.items()}
    total = _linear_weights(model)
    return _table(points, total, total - sum(layer.numel for layer, _ in layers.values()))._replace(total=1.0)


def _measured(model: nn.Module, budget: Budget, layers: Layers, example: Any) -> CostTable:
    sys.stderr.write("trisparse: measuring what layers cost by how much is pruned; once for a machine, some minutes\n")
    examples = examples_of(model, budget, example)
    seen = [tokens_of(model, layers, one) for one in examples]
    dense_ms = [model_ms(model, one) for one in examples]

    def cost(name: str, share: float) -> float:
        counts = [found.get(name, 0) for found in seen]
        if not any(counts) or not has_format(layers[name][0]):  # its time is a part of the rest
            return 0.0
        times = times_of(layers[name][0], share or SHARES[0], [count for count in counts if count], True)
        shares = [times[n][share > 0] / ms if n else 0.0 for n, ms in zip(counts, dense_ms, strict=True)]
        return statistics.fmean(shares)

    points = {name: _points(layer, units, partial(cost, name), True) for name, (layer, units) in layers.items()}
    return _table(points, 1.0, 1 - sum(found[0][1] for found in points.values()))


def calibrated(
    model: nn.Module, budget: Budget, layers: Layers, table: CostTable, counts: Sequence[int], example: Any
) -> CostTable:
    """The table with layers and rest scaled so that it is right for a copy in which so many units of each are pruned.

    A layer that is timed by itself finds other caches than in the model, and applies no activation that follows it.
    """
    bare, saved = unwrap(model), 0
    try:
        packed = copy.deepcopy(bare)
        for (name, (layer, units)), pruned in zip(layers.items(), counts, strict=True):
            curve = table.curves[name]
            if curve.at(pruned) < curve.dense and (made := packed_copy(layer, pruned / units)) is not None:
                replace_module(packed, name, made)
                saved += curve.dense - curve.at(pruned)
        fold_activations(packed)  # as `compress` does
    except Exception as error:  # whatever a model raises that can't be copied, or has its layers in wrappers
        sys.stderr.write(f"trisparse: the model is not timed as a whole, since it can't be copied: {one_line(error)}\n")
        return table
    with evaluating(bare):
        packed.eval()
        examples = examples_of(bare, budget, example)
        left = statistics.fmean(1 / times_faster(bare, packed, one, _ROUNDS) for one in examples)
    dense = sum(curve.dense for curve in table.curves.values())
    if not saved or left >= 1:
        return table
    scale = min((1 - left) * WHOLE / saved, WHOLE / dense)
    curves = {n: CostCurve(c.units, tuple(int(cost * scale) for cost in c.costs)) for n, c in table.curves.items()}
    return CostTable(table.total, WHOLE - sum(curve.dense for curve in curves.values()), curves)

"""Which parameters of a model can be pruned: those that multiply what goes through, whatever module holds them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from trisparse.prune.layers.modules import bare_modules, classes_by_name, is_hf_conv1d, op_type


class Weight(NamedTuple):
    """A weight that a pattern can be laid over.

    Attributes:
        name: of its module in the bare model; with the parameter's name behind it where that is not `weight`, and an
            expert's number.
        module: that holds it.
        parameter: its name in the module.
        op_type: `Linear` or `Conv`, what `pruning_op_types` asks for.
        layout: as `Pattern.unit_view` takes it.
        part: which expert of a parameter `[experts, …]`, or None for a whole parameter.
        classes: of the module, and of those that it lies in.
    """

    name: str
    module: nn.Module
    parameter: str
    op_type: str
    layout: str
    part: int | None = None
    classes: frozenset[str] = frozenset()

    @property
    def tensor(self) -> nn.Parameter | None:
        """The parameter, of which this may be a part; None where it is computed, as by a parametrization."""
        return self.module._parameters.get(self.parameter)


def named_weights(model: nn.Module) -> Iterator[Weight]:
    """All weights that can be pruned, in the model's order; one that modules share comes for each of them."""
    classes = classes_by_name(model)
    for name, module in bare_modules(model):
        for weight in _weights_of(name, module):
            yield weight._replace(classes=classes[name])


def _weights_of(name: str, module: nn.Module) -> Iterator[Weight]:
    kind = op_type(module)
    if kind is not None:
        layout = "transposed" if is_hf_conv1d(module) else "conv" if kind == "Conv" else "linear"
        yield Weight(name, module, "weight", kind, layout)
    elif isinstance(module, _ConvTransposeNd):
        if module.groups == 1:
            yield Weight(name, module, "weight", "Conv", "conv_transposed")
    elif isinstance(module, (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)):
        for own, _ in matrices(module, 2):
            if own.startswith("weight_") or own.endswith("_proj_weight"):  # not what a subclass adds
                yield Weight(_join(name, own), module, own, "Linear", "linear")
    else:
        layouts = experts_of(module)
        for own, stack in matrices(module, 3):
            for part in range(len(stack)) if own in layouts else ():
                yield Weight(f"{_join(name, own)}.{part}", module, own, "Linear", layouts[own], part)


def matrices(module: nn.Module, *dims: int) -> Iterator[tuple[str, nn.Parameter]]:
    """A module's own parameters of so many dimensions that are there."""
    for name, parameter in module._parameters.items():
        if parameter is None or isinstance(parameter, nn.parameter.UninitializedParameter):
            continue
        if parameter.dim() in dims:
            yield name, parameter


def experts_of(module: nn.Module) -> dict[str, str]:
    """Parameters that stack the weights of experts, `[experts, …]`, and the layout of each expert.

    What is multiplied how is not in a parameter. transformers says it of its experts by `is_transposed`; of others the
    shapes have to: of a projection to gate and up, `2·inner` by `outer`, and one down, or of sizes that the module
    names. Where these leave it open, nothing is said.
    """
    shapes = {name: tuple(p.shape) for name, p in matrices(module, 3)}
    inward = next((name for name in ("gate_up_proj", "up_proj") if name in shapes), None)
    if inward is not None and "down_proj" in shapes:
        (count, a, b), (_, c, d) = shapes[inward], shapes["down_proj"]
        gates = 2 if inward == "gate_up_proj" and getattr(module, "has_gate", True) else 1
        fits = {"linear": (a, b) == (gates * d, c), "transposed": (a, b) == (d, gates * c)}
        said = getattr(module, "is_transposed", None)
        layouts = [name for name, fit in fits.items() if fit and said in (None, name == "transposed")]
        own = [inward, "down_proj", *(["gate_proj"] if shapes.get("gate_proj") == shapes[inward] else [])]
        return dict.fromkeys(own, layouts[0]) if count > 1 and len(layouts) == 1 else {}
    if "weight" in shapes:
        for inner, outer in (("in_features", "out_features"), ("input_size", "output_size")):
            sizes = getattr(module, outer, None), getattr(module, inner, None)
            if sizes[0] != sizes[1] and sizes in (shapes["weight"][1:], shapes["weight"][:0:-1]):
                return {"weight": "linear" if sizes == shapes["weight"][1:] else "transposed"}
    return {}


def _join(name: str, own: str) -> str:
    return f"{name}.{own}" if name else own

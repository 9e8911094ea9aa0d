"""How much of a model is zero, how much of it multiplies, and what of that no pattern can be laid over."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from trisparse.prune.layers.left_out import listed
from trisparse.prune.layers.modules import bare_modules, unwrap
from trisparse.prune.layers.shards import count_zeros, reshard
from trisparse.prune.layers.weights import matrices, named_weights

_LEAST = 0.01  # share of a model's numbers below which what is dense is not worth a note
_LOOKED_UP = (nn.Embedding, nn.EmbeddingBag)


class Counts(NamedTuple):
    """Zeros and weights of all that multiplies, and zeros and numbers of all parameters; shared ones once."""

    matmul_zeros: int
    matmul: int
    all_zeros: int
    everything: int


def count_parameters(model: nn.Module) -> Counts:
    """Over all processes, all of which make this call, where parameters are sharded.

    What multiplies is every weight that can be pruned, and what multiplies without that: stacks of matrices whose
    layout is not known, weights of linear layers of other classes, bilinear ones, transposed convolutions in groups.
    """
    reshard(model)
    tensors = [weight.tensor for weight in named_weights(model)]
    multiplies = {id(p): p for p in tensors if p is not None}
    multiplies |= {id(p): p for _, module, p in _others(model) if _multiplies(module, p)}
    everything = {id(p): p for p in unwrap(model).parameters()}

    def count(found: dict[int, nn.Parameter]) -> tuple[int, int]:
        zeros = sum(count_zeros(p.detach()) for p in found.values())
        return zeros, sum(p.numel() for p in found.values())

    return Counts(*count(multiplies), *count(everything))


def unprunable_notes(model: nn.Module) -> list[str]:
    """A line on what no pattern can be laid over, where it is a hundredth of all weights or more."""
    total = sum(p.numel() for p in unwrap(model).parameters())
    others = sorted(_others(model), key=lambda other: -other[2].numel())
    notes = []
    for what, chosen in (
        ("embeddings, which are looked up and not multiplied", [o for o in others if isinstance(o[1], _LOOKED_UP)]),
        ("no kind of weight that can be pruned", [o for o in others if not isinstance(o[1], _LOOKED_UP)]),
    ):
        share = sum(p.numel() for _, _, p in chosen) / total
        if share >= _LEAST:
            notes.append(f"dense: {listed([name for name, *_ in chosen])}, {share:.1%} of all weights: {what}")
    return notes


def _others(model: nn.Module) -> list[tuple[str, nn.Module, nn.Parameter]]:
    """Parameters of two dimensions and more that no pattern can be laid over, each once: name, module, parameter."""
    known = {id(weight.tensor) for weight in named_weights(model)}
    found: dict[int, tuple[str, nn.Module, nn.Parameter]] = {}
    for name, module in bare_modules(model):
        for own, parameter in matrices(module, 2, 3, 4, 5):
            if id(parameter) not in known:
                found.setdefault(id(parameter), (f"{name}.{own}" if name else own, module, parameter))
    return list(found.values())


def _multiplies(module: nn.Module, parameter: nn.Parameter) -> bool:
    if isinstance(module, (nn.Bilinear, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return True
    if parameter is module._parameters.get("weight") and parameter.dim() == 2:
        return not isinstance(module, _LOOKED_UP)  # a linear layer of somebody's own
    return parameter.dim() == 3 and min(parameter.shape) > 1 and not list(module.children())

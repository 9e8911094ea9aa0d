"""Chains: hidden units that some layers make and one layer reads, found by the structure of modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trisparse.prune.layers import is_hf_conv1d

Constant = tuple[Tensor, Tensor]  # which units do not depend on the input, and their values

# attributes of a module: layers that make the units, the layer that reads them, the activation or the size of a head
_FEED_FORWARD = (
    (("intermediate.dense",), "output.dense", "intermediate.intermediate_act_fn"),  # BERT, RoBERTa, ELECTRA, ViT
    (("lin1",), "lin2", "activation"),  # DistilBERT
    (("c_fc",), "c_proj", "act"),  # GPT-2
    (("gate_proj", "up_proj"), "down_proj", "act_fn"),  # Llama, Mistral, Qwen
)
_ATTENTION = (
    (("self.query", "self.key", "self.value"), "output.dense", "self.attention_head_size"),
    (("q_lin", "k_lin", "v_lin"), "out_lin", "attention_head_size"),
    (("q_proj", "k_proj", "v_proj"), "o_proj", "head_dim"),
)
_ELEMENTWISE = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.Identity)


class Chain(NamedTuple):
    """Units between layers.

    Attributes:
        producers: names of the layers that make the units, rows of their weights.
        consumer: name of the layer that reads them, columns of its weight.
        sizes: rows of a unit in each producer.
        width: columns of a unit in the consumer.
        constants: from which rows of each producer are zero and from their biases (zeros where there are none),
            which columns do not depend on the input, and their values.
    """

    producers: tuple[str, ...]
    consumer: str
    sizes: tuple[int, ...]
    width: int
    constants: Callable[[Sequence[Tensor], Sequence[Tensor]], Constant]


def find_chains(model: nn.Module) -> list[Chain]:
    """All chains of BERT-, DistilBERT-, GPT-2- and Llama-like modules, and of nn.Sequential, in the model's order."""
    return [chain for name, module in model.named_modules() for chain in _chains_of(name, module)]


def _chains_of(name: str, module: nn.Module) -> Iterator[Chain]:
    prefix = f"{name}." if name else ""
    for makes, reads, act in _FEED_FORWARD:
        if layers := _layers(module, (*makes, reads)):
            yield _feed_forward([prefix + m for m in makes], prefix + reads, attrgetter(act)(module), len(layers) - 1)
    for projections, reads, size in _ATTENTION:
        if layers := _layers(module, (*projections, reads)):
            yield _attention([prefix + p for p in projections], prefix + reads, layers, attrgetter(size)(module))
    if isinstance(module, nn.Sequential):
        yield from _sequence(prefix, [(key, child) for key, child in module.named_children() if _matters(child)])


def _matters(module: nn.Module) -> bool:
    return not isinstance(module, (nn.Dropout, nn.Identity))


def _layers(module: nn.Module, paths: Sequence[str]) -> list[Any] | None:
    """The layers at these paths, or None unless all are there and linear."""
    found: list[Any] = []
    for path in paths:
        try:
            layer = module.get_submodule(path)
        except AttributeError:
            return None
        if not (isinstance(layer, nn.Linear) or is_hf_conv1d(layer)):
            return None
        found.append(layer)
    return found


def _feed_forward(makes: Sequence[str], reads: str, act: Callable[[Tensor], Tensor], count: int) -> Chain:
    def plain(zero: Sequence[Tensor], biases: Sequence[Tensor]) -> Constant:
        return zero[0], act(biases[0])

    def gated(zero: Sequence[Tensor], biases: Sequence[Tensor]) -> Constant:
        gate = act(biases[0])
        nothing = (zero[0] & (gate == 0)) | (zero[1] & (biases[1] == 0))
        return (zero[0] & zero[1]) | nothing, torch.where(nothing, 0, gate * biases[1])

    return Chain(tuple(makes), reads, (1,) * count, 1, plain if count == 1 else gated)


def _attention(makes: Sequence[str], reads: str, layers: Sequence[Any], head: int) -> Chain:
    """Heads, or, where several queries share a key, all heads of one key."""
    queries, keys, *_ = (layer.weight.shape[0] for layer in layers)
    group = queries // keys

    def constants(zero: Sequence[Tensor], biases: Sequence[Tensor]) -> Constant:
        heads = [rows.view(-1, size).all(1) for rows, size in zip(zero, (group * head, head, head), strict=True)]
        gone = heads[0] & heads[1] & heads[2]  # then attention is even, and its sum is the bias of the values
        values = biases[2].view(-1, 1, head).expand(-1, group, -1).reshape(-1)
        return gone.repeat_interleave(group * head), values

    return Chain(tuple(makes), reads, (group * head, head, head), group * head, constants)


def _sequence(prefix: str, children: Sequence[tuple[str, nn.Module]]) -> Iterator[Chain]:
    for (first, a), (_, act), (last, b) in zip(children, children[1:], children[2:], strict=False):
        if isinstance(a, nn.Linear) and isinstance(act, _ELEMENTWISE) and isinstance(b, nn.Linear):
            yield _feed_forward([prefix + first], prefix + last, act, 1)

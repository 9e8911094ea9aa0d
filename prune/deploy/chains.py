"""Chains: hidden units that some layers make and one layer reads, found by the structure of modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trisparse.prune.deploy.obstacles import interference, obstacle
from trisparse.prune.pruner.layers import op_type

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
_ELEMENTWISE = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.ELU)
_PASSIVE = (nn.Dropout, nn.Identity)  # in evaluation mode


class Chain(NamedTuple):
    """Units between layers.

    Attributes:
        producers: names of the layers that make the units, rows of their weights.
        consumer: name of the layer that reads them, columns of its weight.
        sizes: rows of a unit in each producer.
        width: columns of a unit in the consumer.
        constants: from which rows of each producer are zero and from their biases (zeros where there are none),
            which columns do not depend on the input, and their values.
        obstacle: why the units must stay, or an empty string.
    """

    producers: tuple[str, ...]
    consumer: str
    sizes: tuple[int, ...]
    width: int
    constants: Callable[[Sequence[Tensor], Sequence[Tensor]], Constant]
    obstacle: str = ""


def find_chains(model: nn.Module) -> list[Chain]:
    """All chains of BERT-, DistilBERT-, GPT-2- and Llama-like modules, and of nn.Sequential, in the model's order."""
    return [chain for name, module in model.named_modules() for chain in _chains_of(name, module)]


def _chains_of(name: str, module: nn.Module) -> Iterator[Chain]:
    prefix = f"{name}." if name else ""
    for makes, reads, path in _FEED_FORWARD:
        layers, act = _layers(module, (*makes, reads)), _at(module, path)
        if layers and callable(act):
            chain = _feed_forward([prefix + m for m in makes], prefix + reads, act)
            yield chain._replace(obstacle=_obstacle(prefix, module, (*makes, reads)))
    for projections, reads, path in _ATTENTION:
        layers, head = _layers(module, (*projections, reads)), _at(module, path)
        if layers and isinstance(head, int) and head > 0 and len(_at(layers[1], "weight")) > 0:
            chain = _attention([prefix + p for p in projections], prefix + reads, layers, head)
            yield chain._replace(obstacle=_obstacle(prefix, module, (*projections, reads)))
    if type(module) is nn.Sequential:  # a subclass may have a forward of its own
        yield from _sequence(prefix, module)


def _at(module: Any, path: str) -> Any:
    """An attribute of an attribute, None if it is not there."""
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def _layers(module: nn.Module, paths: Sequence[str]) -> list[Any] | None:
    """The layers at these paths, or None unless all are there and linear."""
    found = [_at(module, path) for path in paths]
    return found if all(isinstance(layer, nn.Module) and op_type(layer) == "Linear" for layer in found) else None


def _obstacle(prefix: str, block: nn.Module, paths: Sequence[str]) -> str:
    """Why the units of a block's layers must stay: hooks and the like, on the layers and on what lies between."""
    for path in paths:
        if reason := obstacle(block.get_submodule(path)):
            return f"stays: {prefix}{path}: {reason}"
    tops = {path.partition(".")[0] for path in paths}
    for top, child in block._modules.items():
        if child is None or (top not in tops and any(op_type(m) == "Linear" for m in child.modules())):
            continue  # layers of another chain, as BERT's attention beside its feed-forward block
        for name, module in child.named_modules(prefix=prefix + top):
            if reason := interference(module):
                return f"stays: {name}: {reason}"
    return f"stays: {prefix.rstrip('.')}: its forward was replaced" if "forward" in vars(block) else ""


def _feed_forward(makes: Sequence[str], reads: str, act: Callable[[Tensor], Tensor]) -> Chain:
    def plain(zero: Sequence[Tensor], biases: Sequence[Tensor]) -> Constant:
        return zero[0], act(biases[0])

    def gated(zero: Sequence[Tensor], biases: Sequence[Tensor]) -> Constant:
        gate = act(biases[0])
        nothing = (zero[0] & (gate == 0)) | (zero[1] & (biases[1] == 0))
        return (zero[0] & zero[1]) | nothing, torch.where(nothing, 0, gate * biases[1])

    return Chain(tuple(makes), reads, (1,) * len(makes), 1, plain if len(makes) == 1 else gated)


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


def _sequence(prefix: str, block: nn.Sequential) -> Iterator[Chain]:
    children = [(key, child) for key, child in block._modules.items() if child is not None]
    steps = [index for index, (_, child) in enumerate(children) if type(child) not in _PASSIVE]
    for i, j, k in zip(steps, steps[1:], steps[2:], strict=False):
        (first, a), (_, act), (last, b) = children[i], children[j], children[k]
        if op_type(a) == op_type(b) == "Linear" and type(act) in _ELEMENTWISE:
            reasons = [(first, obstacle(a)), (last, obstacle(b))]
            reasons += [(key, interference(child)) for key, child in children[i + 1 : k]]
            reason = next((f"stays: {prefix}{key}: {reason}" for key, reason in reasons if reason), "")
            if "forward" in vars(block):
                reason = f"stays: {prefix.rstrip('.') or 'the model'}: its forward was replaced"
            yield _feed_forward([prefix + first], prefix + last, act)._replace(obstacle=reason)

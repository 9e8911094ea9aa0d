"""Chains found by the names that modules of known architectures have: of heads, and of all where nothing can be run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trisparse.prune.channels.chains import Chain, Side
from trisparse.prune.channels.obstacles import obstacle
from trisparse.prune.channels.shrinking import rows_of
from trisparse.prune.errors import one_line
from trisparse.prune.layers.attentions import ATTENTIONS, at
from trisparse.prune.layers.modules import interference, op_type

Constant = tuple[Tensor, Tensor]  # which units do not depend on the input, and their values
Constants = Callable[[Sequence[Tensor], Sequence[Tensor]], Constant]  # of zero rows and biases of each producer

# attributes of a module: layers that make the units, the layer that reads them, and the activation
_FEED_FORWARD = (
    (("intermediate.dense",), "output.dense", "intermediate.intermediate_act_fn"),  # BERT, RoBERTa, ELECTRA
    (("lin1",), "lin2", "activation"),  # DistilBERT
    (("c_fc",), "c_proj", "act"),  # GPT-2
    (("gate_proj", "up_proj"), "down_proj", "act_fn"),  # Llama, Mistral, Qwen
)
_ELEMENTWISE = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.ELU)
_PASSIVE = (nn.Dropout, nn.Identity)  # in evaluation mode


def heads_of(model: nn.Module) -> list[Chain]:
    """Heads of attention as in BERT, DistilBERT and Llama."""
    return [chain for name, module in model.named_modules() for chain in _attention(name, module)]


def channels_of(model: nn.Module) -> list[Chain]:
    """Hidden channels of feed-forward blocks as in BERT, DistilBERT, GPT-2 and Llama, and of nn.Sequential."""
    return [chain for name, module in model.named_modules() for chain in _feed_forward(name, module)]


def _feed_forward(name: str, module: nn.Module) -> Iterator[Chain]:
    prefix = f"{name}." if name else ""
    for makes, reads, path in _FEED_FORWARD:
        layers, act = _layers(module, (*makes, reads)), at(module, path)
        if layers and callable(act):
            names = [prefix + path for path in (*makes, reads)]
            yield _chain(names, layers, [1] * len(layers), _passed(act), _obstacle(prefix, module, (*makes, reads)))
    if type(module) is nn.Sequential:  # a subclass may have a forward of its own
        yield from _sequence(prefix, module)


def _attention(name: str, module: nn.Module) -> Iterator[Chain]:
    prefix = f"{name}." if name else ""
    for attention in ATTENTIONS:
        if not attention.can_shrink:
            continue
        paths = (*attention.makes, attention.reads)
        layers, head = _layers(module, paths), at(module, attention.size)
        if layers and isinstance(head, int) and head > 0 and len(at(layers[1], "weight")) > 0:
            group = rows_of(layers[0]).shape[0] // rows_of(layers[1]).shape[0]
            sizes = [group * head, head, head, group * head]
            names = [prefix + path for path in paths]
            chain = _chain(names, layers, sizes, _attended(group, head), _obstacle(prefix, module, paths))
            yield chain._replace(is_heads=True)


def _chain(names: Sequence[str], layers: Sequence[Any], sizes: Sequence[int], constants: Constants, why: str) -> Chain:
    """A chain of producers and, last, one reader, with so many rows or columns for each unit."""
    weights = [rows_of(layer) for layer in layers]
    counts = [*(len(weight) for weight in weights[:-1]), weights[-1].shape[1]]
    units = counts[-1] // sizes[-1]
    index = [torch.arange(count, device="cpu") // size for count, size in zip(counts, sizes, strict=True)]
    fixed = values = None
    if not why:
        made = list(zip(layers[:-1], weights[:-1], strict=True))
        try:
            zero = [(weight == 0).all(1) for _, weight in made]
            biases = [w.new_zeros(len(w)) if layer.bias is None else layer.bias for layer, w in made]
            fixed, values = constants(zero, biases)
            if any(count != units * size for count, size in zip(counts, sizes, strict=True)):
                raise RuntimeError(f"they have {counts} rows and columns")
        except (RuntimeError, TypeError) as error:
            why = f"stays: its layers do not fit together ({one_line(error)})"
    sides = [Side(name, "out", unit) for name, unit in zip(names[:-1], index, strict=False)]
    return Chain((*sides, Side(names[-1], "in", index[-1], 1, fixed, values)), units, why)


def _layers(module: nn.Module, paths: Sequence[str]) -> list[Any] | None:
    """The layers at these paths, or None unless all are there and linear."""
    found = [at(module, path) for path in paths]
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


def _passed(act: Callable[[Tensor], Tensor]) -> Constants:
    """Through an activation; of two producers the first is the gate."""

    def constants(zero: Sequence[Tensor], biases: Sequence[Tensor]) -> Constant:
        gate = act(biases[0])
        if len(zero) == 1:
            return zero[0], gate
        nothing = (zero[0] & (gate == 0)) | (zero[1] & (biases[1] == 0))
        return (zero[0] & zero[1]) | nothing, torch.where(nothing, 0, gate * biases[1])

    return constants


def _attended(group: int, head: int) -> Constants:
    """Through attention by heads, or, where several queries share a key, by all heads of one key."""

    def constants(zero: Sequence[Tensor], biases: Sequence[Tensor]) -> Constant:
        heads = [rows.view(-1, size).all(1) for rows, size in zip(zero, (group * head, head, head), strict=True)]
        gone = heads[0] & heads[1] & heads[2]  # then attention is even, and its sum is the bias of the values
        values = biases[2].view(-1, 1, head).expand(-1, group, -1).reshape(-1)
        return gone.repeat_interleave(group * head), values

    return constants


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
            yield _chain([prefix + first, prefix + last], [a, b], [1, 1], _passed(act), reason)

"""Attention of known architectures: which weights make its heads and which reads them, by the names of modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from trisparse.prune.config.patterns import Pattern
from trisparse.prune.layers.modules import bare_modules, is_hf_conv1d, op_type

_FUSED = 3  # query, key and value in one weight


class Names(NamedTuple):
    """Attributes of an attention.

    Attributes:
        makes: layers, or one parameter, whose rows are heads: query, key and value, or one that is all three in turn.
        reads: the layer whose columns are heads.
        size: how many rows of a key are a head.
        can_shrink: whether its forward counts the heads that it gets, so that it runs with fewer.
    """

    makes: tuple[str, ...]
    reads: str
    size: str
    can_shrink: bool = False


ATTENTIONS = (
    Names(("self.query", "self.key", "self.value"), "output.dense", "self.attention_head_size", True),  # BERT, RoBERTa
    Names(("q_lin", "k_lin", "v_lin"), "out_lin", "attention_head_size", True),  # DistilBERT
    Names(("q_proj", "k_proj", "v_proj"), "o_proj", "head_dim", True),  # Llama, Mistral, Qwen, ViT
    Names(("q_proj", "k_proj", "v_proj"), "out_proj", "head_dim"),  # BART, OPT, CLIP, GPT-J
    Names(("q", "k", "v"), "o", "key_value_proj_dim"),  # T5
    Names(("c_attn",), "c_proj", "head_dim"),  # GPT-2
    Names(("in_proj_weight",), "out_proj", "head_dim"),  # nn.MultiheadAttention
)
KNOWN = "BERT, RoBERTa, DistilBERT, ViT, Llama, GPT-2, OPT, BART, T5 and nn.MultiheadAttention"


class HeadWeight(NamedTuple):
    """A weight of an attention, and the pattern whose units are its heads."""

    module: nn.Module
    parameter: str
    pattern: Pattern


def attentions_of(model: nn.Module) -> Iterator[tuple[str, list[HeadWeight]]]:
    """Name of each attention, and its weights; the last is the one that reads the heads.

    A unit is a head, or, where several queries share a key, all heads of one key. An attention whose weights have other
    shapes than its names say is not found.
    """
    for name, module in bare_modules(model):
        for names in ATTENTIONS:
            if found := _weights(module, names):
                yield name, found


def _weights(module: nn.Module, names: Names) -> list[HeadWeight]:
    places = [_place(module, path) for path in (*names.makes, names.reads)]
    size = at(module, names.size)
    if any(place is None for place in places) or type(size) is not int or size < 1:
        return []
    owners = [place for place in places if place is not None]
    *made, (_, read) = [_sizes(owner, parameter) for owner, parameter in owners]
    rows = [high for high, _ in made]
    if len(rows) == 1:
        fits = rows[0] == _FUSED * read and read % size == 0
        patterns = [Pattern("mha", "fused", _FUSED, size)]
        width = size
    else:
        query, key, value = rows
        fits = 0 < key == value and key % size == 0 and query % key == 0 and query == read
        width = query // max(key, 1) * size
        patterns = [Pattern("mha", "row", n) for n in (width, size, size)]
    patterns.append(Pattern("mha", "column", width))
    return [HeadWeight(*place, own) for place, own in zip(owners, patterns, strict=True)] if fits and read else []


def _place(module: nn.Module, path: str) -> tuple[nn.Module, str] | None:
    """The linear layer, or the parameter, that is at a path."""
    found = at(module, path)
    if isinstance(found, nn.Module) and op_type(found) == "Linear":
        module, path = found, "weight"
    parameter = module._parameters.get(path)
    if parameter is None or isinstance(parameter, nn.parameter.UninitializedParameter):
        return None
    return (module, path) if parameter.dim() == 2 else None


def _sizes(module: nn.Module, parameter: str) -> tuple[int, int]:
    """Outputs and inputs."""
    shape = module._parameters[parameter].shape  # type: ignore[union-attr]
    return (shape[1], shape[0]) if is_hf_conv1d(module) else (shape[0], shape[1])


def at(module: Any, path: str) -> Any:
    """An attribute of an attribute, None if it is not there."""
    for name in path.split("."):
        module = getattr(module, name, None)
    return module

"""What names layers: regular expressions, globs, classes."""

import pytest
import torch
from torch import nn

from trisparse import Pruner, PruningConfig, PruningError
from trisparse.prune.config.layer_names import finds, names_of_class, parse_names


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)


class Narrow(Attention):
    """A class of its own that is found by the class it derives from."""


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            [nn.ModuleDict({"attention": kind(), "inner": nn.Linear(8, 8)}) for kind in (Attention, Narrow)]
        )


def layers(**names):
    config = PruningConfig(pattern="2:4", start_step=1, end_step=2, exclude_head=False, **names)
    return [layer.name.removeprefix("blocks.") for layer in Pruner(Net(), config).layers]


@pytest.mark.parametrize(
    ("names", "want"),
    [
        ({"op_names": ["0.*key"]}, ["0.attention.key"]),
        ({"op_names": ["glob:blocks.?.inner"]}, ["0.inner", "1.inner"]),
        ({"op_names": ["glob:inner"]}, None),  # the whole name, unlike an expression
        ({"op_names": [Narrow]}, ["1.attention.query", "1.attention.key"]),
        ({"op_names": ["class:Narrow", "glob:*.0.inner"]}, ["0.inner", "1.attention.query", "1.attention.key"]),
        ({"excluded_op_names": [Attention]}, ["0.inner", "1.inner"]),
        ({"excluded_op_names": ["class:Attention", "^blocks.0"]}, ["1.inner"]),
        ({"op_names": [nn.Linear], "excluded_op_names": ["glob:*attention*"]}, ["0.inner", "1.inner"]),
        ({"op_names": [nn.Conv2d]}, None),
        ({"op_names": ["class:Module"]}, None),
    ],
    ids=str,
)
def test_which_layers_are_found(names, want):
    if want is None:
        with pytest.raises(PruningError, match="finds no layer for group 0"):
            layers(**names)
    else:
        assert layers(**names) == want


def test_a_class_is_found_by_either_name_and_saved_as_text():
    assert {"Linear", "torch.nn.modules.linear.Linear"} <= names_of_class(nn.Linear)
    for name in ("Linear", "torch.nn.Linear", "torch.nn.modules.linear.Linear"):
        assert finds(f"class:{name}", "", names_of_class(nn.Linear))
    sharded = type("FSDPAttention", (Attention,), {})  # as fully_shard makes it
    assert parse_names("op_names", [sharded]) == parse_names("op_names", [Attention])
    assert PruningConfig(pattern="2:4", start_step=1, end_step=2).excluding(Attention).groups[0].excluded_op_names
    config = PruningConfig(pattern="2:4", start_step=1, end_step=2, op_names=[Attention])
    (saved,) = config.to_dict()
    assert saved["op_names"] == [f"class:{__name__}.Attention"]
    assert PruningConfig(pruning_configs=[saved]) == config


def test_heads_are_found_by_the_class_of_their_attention():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8), 2, enable_nested_tensor=False)
    config = {"pattern": "mha", "target_sparsity": 0.5, "start_step": 1, "end_step": 2}
    found = Pruner(model, config | {"op_names": [nn.MultiheadAttention]}).layers
    assert {layer.attention for layer in found} == {"layers.0.self_attn", "layers.1.self_attn"}
    with pytest.raises(PruningError, match="finds no attention"):
        Pruner(model, config | {"excluded_op_names": [nn.MultiheadAttention]})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("query", r"op_names: want a list of names, got 'query'; write \['query'\]"),
        (nn.Linear, r"op_names: want a list of names, got .*; write \[Linear\]"),
        ([3], "op_names: want regular expressions, 'glob:…' or classes of modules, got 3"),
        (["glob:"], "op_names: 'glob:' names nothing; write what comes behind the colon"),
        (["*.query"], r"op_names: '\*.query' is no regular expression: .*; as a glob it is 'glob:\*.query'"),
        (["("], r"op_names: '\(' is no regular expression: [^;]*$"),
    ],
    ids=str,
)
def test_mistakes(value, message):
    with pytest.raises(PruningError, match=message):
        parse_names("op_names", value)


def test_a_tied_weight_is_not_named_by_the_class_of_all_layers():
    """As `.*` does not: it stays dense unless it is meant."""
    model = nn.ModuleDict({"embedding": nn.Embedding(8, 8), "inner": nn.Linear(8, 8), "tied": nn.Linear(8, 8)})
    model["tied"].weight = model["embedding"].weight
    keys = {"pattern": "2:4", "start_step": 1, "end_step": 2, "exclude_head": False}
    for names, want in (([nn.Linear], ["inner"]), (["glob:*"], ["inner"]), (["glob:t*"], ["tied"])):
        assert [layer.name for layer in Pruner(model, keys | {"op_names": names}).layers] == want
    assert torch.equal(model["tied"].weight, model["embedding"].weight)

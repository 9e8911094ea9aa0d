"""One-shot pruning that is asked for what it can't do: one line, and weights as they were."""

import copy

import pytest
import torch
from torch import nn

from trisparse import PruningError, prune_once


def inputs(count=256):
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(1))


def layer_and_head():
    return nn.Sequential(nn.Linear(32, 24), nn.Linear(24, 2))


def test_what_has_no_effect_is_an_error():
    x = inputs().split(64)
    for batches, method, keys, message in [
        (x, "magnitude", {}, "batches: has no effect without a method that looks at data"),
        (None, "magnitude", {"device": "cpu"}, "device: has no effect without a method that looks at data"),
        (x, "wanda", {"dampening": 0.1}, "dampening: has no effect without method 'sparsegpt'; leave it out"),
        (x, "dsnot", {"block_size": 64}, "block_size: has no effect without method 'sparsegpt'"),
        (x, "wanda", {"max_length": 64}, "max_length: has no effect without calibration"),
        (x, "wanda", {"samples": 64}, "samples: has no effect without calibration"),
        (x, "wanda", {"calibration": ["a"]}, "calibration: has no effect without batches left out"),
        (None, "wanda", {}, "batches: want a list .* got one NoneType; or give calibration and a tokenizer"),
    ]:
        with pytest.raises(PruningError, match=message):
            prune_once(layer_and_head(), method, batches, pattern="2:4", **keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"dampening": 0}, "dampening: want a number above 0, such as 0.01, got 0"),
        ({"dampening": float("inf")}, "dampening: want a number above 0, such as 0.01, got inf"),
        ({"dampening": True}, "dampening: want a number above 0, such as 0.01, got True"),
        ({"dampening": 1e-30}, "dampening: 1e-30 is too little for 0, whose inputs depend on each other"),
        ({"block_size": 0}, "block_size: want a whole number of columns, such as 128, got 0"),
        ({"block_size": 6}, "block_size: want a multiple of 4 for 2:4, got 6"),
    ],
)
def test_options_of_sparsegpt_are_checked(keys, message):
    model = layer_and_head()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PruningError, match=message):
        prune_once(model, "sparsegpt", [torch.ones(4, 32)], pattern="2:4", **keys)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_misuse():
    model, x = layer_and_head(), inputs().split(64)
    before = copy.deepcopy(model.state_dict())
    for arguments, keys, message in [
        (
            (model, "wandas", x),
            {"pattern": "2:4"},
            "method: 'wandas' is not one of magnitude, wanda, .*did you mean 'wanda'",
        ),
        ((model, "wanda", []), {"pattern": "2:4"}, "batches: want at least one batch"),
        (
            (model, "wanda", x),
            {"pattern": "4x1", "target_sparsity": 0.5},
            "pattern: want N:M or 1x1 for wanda, got '4x1'",
        ),
        ((model, "wanda", x), {}, "pattern: missing; want what goes together"),
        ((model, "wanda", x), {"pattern": "2:4", "target_sparsity": 0.3}, "target_sparsity: want 0.5 for 2:4"),
        ((model, "wanda", x), {"pattern": "2:4", "start_step": 3}, "start_step: prune_once prunes at once"),
        (
            (model, "wanda", x),
            {"pattern": "2:4", "pruning_scope": "global"},
            "pruning_scope: says which layers compete",
        ),
        ((model, "wanda", x), {"pattern": "2:4", "op_names": ["nothing"]}, "op_names"),
        (
            (model, "wanda", x),
            {"pattern": "2:4", "pruning_op_types": ["Conv"]},
            "pruning_op_types: want .'Linear'. for wanda",
        ),
    ]:
        with pytest.raises(PruningError, match=message):
            prune_once(*arguments, **keys)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


class Late(nn.Module):
    """Its last layer gets what is not finite, or nothing, once the first one is pruned."""

    def __init__(self, share=False):
        super().__init__()
        self.first, self.last, self.head = (nn.Linear(32, 32) for _ in range(3))
        self.last.weight = self.first.weight if share else self.last.weight
        self.how = "whole"

    def forward(self, x, *labels):
        y = self.first(x)
        if self.how == "none" and (self.first.weight == 0).any():
            return self.head(y)
        return self.head(self.last(y / (self.first.weight.all() if self.how == "nan" else 1)))


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("nan", "last: its inputs were not finite"),
        ("none", r"no input to last; give more.*\['\^last\$'\]"),
        ("stop", None),
    ],
)
def test_weights_are_as_they_were_after_an_error(how, message, method):
    torch.manual_seed(0)
    model = Late()
    model.how = how
    before = copy.deepcopy(model.state_dict())

    def progress(text):
        if how == "stop" and text == "block 2 of 2":
            assert (model.first.weight == 0).any()
            raise KeyboardInterrupt

    with pytest.raises(PruningError if message else KeyboardInterrupt, match=message):
        prune_once(model, method, inputs().split(64), pattern="2:4", progress=progress)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert not model.first._forward_pre_hooks
    assert model.training


def test_batches_that_do_not_fit():
    x = inputs(64)
    for batches, message, model in [
        (x, "batches: want a list or a loader of batches, got one Tensor", Late()),
        ({"x": x}, "batches: want a list or a loader of batches, got one dict", Late()),
        (None, "batches: want a list or a loader of batches, got one NoneType", Late()),
        ([x, {"y": x}], "batches: the model does not take batch 1: TypeError: .*'y'", Late()),
        ([x[:0]], r"batches: they show no input to first, last; give more", Late()),
        ([x * torch.nan], "first: its inputs were not finite; calibrate in bfloat16 or float32", Late()),
        (
            [x],
            r"op_names: first and last share a weight.*add to excluded_op_names: \['\^first\$', '\^last\$'\]",
            Late(True),
        ),
    ]:
        for method in ("wanda", "sparsegpt"):
            with pytest.raises(PruningError, match=message):
                prune_once(model, method, batches, pattern="2:4")
    prune_once(Late(), "wanda", [[x, torch.zeros(64)], (x,)], pattern="2:4")
    prune_once(Late(), "wanda", ({"x": part} for part in x.split(16)), pattern="2:4")

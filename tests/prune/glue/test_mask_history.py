"""The history of masks: exact counts, one wait for the device, and a bound on its size."""

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trisparse import Pruner, PruningConfig
from trisparse.prune.glue import mask_history
from trisparse.prune.glue.mask_history import begin_history, record_masks


@pytest.fixture
def watched(make_mlp, train, sgd):
    """Train a pruned model, recording after every step; the pruner, the history and all flips."""

    def run(steps=12, **config):
        model = make_mlp()
        keys = {"pattern": "4x1", "target_sparsity": 0.75, "start_step": 2, "end_step": 10, "pruning_frequency": 2}
        pruner = Pruner(model, PruningConfig(**keys | config))
        history, flips = begin_history(pruner), []
        optimizer = sgd(model)
        with pruner.attach(optimizer):
            train(model, optimizer, steps, after=lambda step: flips.append(record_masks(history, pruner)))
        return pruner, history, flips

    return run


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"pattern": "2:4", "target_sparsity": 0.5},
        {"pattern": "1xchannel", "pruning_type": "snip_momentum_progressive", "pruning_frequency": 4},
        {"pattern": "1x1", "start_step": 0, "pruning_type": "magnitude"},
    ],
)
def test_counts_are_those_of_the_masks(watched, config):
    pruner, history, flips = watched(**config)
    masks = pruner.masks()
    assert history["layers"] == list(masks)
    assert history["weights"] == [mask.numel() for mask in masks.values()]
    assert history["pruned"][-1] == [int((~mask).sum()) for mask in masks.values()]
    assert history["pruned"][0] == [0, 0]
    assert [sum(column) for column in zip(*flips, strict=True)] == history["pruned"][-1]
    assert sum(history["pruned"][-1]) > 0
    assert len(flips) == 12


def test_rows_only_where_masks_change(watched):
    _, history, flips = watched()
    assert history["steps"] == [0, 4, 6, 8, 10]
    assert [sum(row) > 0 for row in flips] == [step in history["steps"] for step in range(1, 13)]


def test_locked_zeros_are_no_flips(make_mlp):
    model = make_mlp()
    with torch.no_grad():
        model[0].weight[::2] = 0
    config = PruningConfig(pattern="1x1", pruning_type="pattern_lock")
    pruner = Pruner(model, config)
    history = begin_history(pruner)
    assert history["pruned"] == [[256, 0]]
    assert record_masks(history, pruner) == [0, 0]


def test_many_rows_are_thinned_and_no_flip_is_lost(watched, monkeypatch):
    keys = {"pattern": "1x1", "start_step": 1, "end_step": 40, "pruning_frequency": 1, "target_sparsity": 0.9}
    _, whole, flips = watched(40, **keys)
    monkeypatch.setattr(mask_history, "_MOST", 8)
    _, thin, same = watched(40, **keys)
    assert same == flips
    assert 4 <= len(thin["steps"]) == len(thin["pruned"]) <= 8
    assert (thin["steps"][0], thin["steps"][-1]) == (0, 40)
    rows = dict(zip(whole["steps"], whole["pruned"], strict=True))
    assert all(rows[step] == pruned for step, pruned in zip(thin["steps"], thin["pruned"], strict=True))
    assert json.loads(json.dumps(thin)) == thin


def test_one_wait_for_the_device_a_group(watched, monkeypatch):
    pruner, *_ = watched()
    waits = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: waits.append("tolist") or tolist(tensor))

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._local_scalar_dense.default:
                waits.append("item")
            return func(*args, **(kwargs or {}))

    with Watch():
        assert pruner.sparsity() == pytest.approx(0.75, abs=0.01)
    assert waits == ["tolist"]

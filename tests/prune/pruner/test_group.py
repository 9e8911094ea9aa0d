"""What a group of layers knows of its weights and their scores."""

import copy

import pytest
import torch

from trisparse import Pruner, PruningConfig, PruningError

KEYS = {"pattern": "4x1", "target_sparsity": 0.5, "start_step": 2, "end_step": 6, "pruning_frequency": 2}


def test_weights_that_lie_elsewhere_are_found(make_mlp, sgd, train):
    """As after `weight.data = ...`, which leaves the parameter what it is."""
    models = [make_mlp(), make_mlp()]
    for model, moves in zip(models, (False, True), strict=True):
        pruner, optimizer = Pruner(model, PruningConfig(**KEYS)), sgd(model)
        with pruner.attach(optimizer):
            train(model, optimizer, 3)
            if moves:
                for layer in pruner.layers:
                    layer.weight.data = layer.weight.data.clone()
            train(model, optimizer, 4)
        assert pruner.report().pattern_verified
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_a_state_from_before_anything_was_scored_is_looked_at_anew(make_mlp, sgd, train):
    model = make_mlp()
    pruner = Pruner(model, PruningConfig(**KEYS, op_names=["^0$", "^2$"]))
    beginning = copy.deepcopy(pruner.state_dict())
    optimizer = sgd(model)
    with pytest.warns(UserWarning, match="left before the last event"), pruner.attach(optimizer):
        train(model, optimizer, 4)
    pruner.load_state_dict(beginning)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[2].weight.grad = torch.full_like(model[2].weight, torch.nan)
    for _ in range(3):
        pruner.observe()
        pruner.step()
    pruner.observe()
    with pytest.raises(PruningError, match="has no score for 2: no finite gradient came up to now"):
        pruner.step()  # the first event that prunes

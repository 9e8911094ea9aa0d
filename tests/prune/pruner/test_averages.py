"""Averages of a model beside it, and copies that a Pruner is asked to mask."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trisparse import Pruner, PruningConfig, PruningError

KEYS = {"pattern": "4x1", "target_sparsity": 0.75, "start_step": 1, "end_step": 16, "pruning_frequency": 5}

AVERAGES = {
    "mean": lambda model: AveragedModel(model),
    "EMA": lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
    "half": lambda model: AveragedModel(model).to(torch.bfloat16),
}


@pytest.mark.parametrize("make", AVERAGES.values(), ids=AVERAGES)
def test_averaged_models(make_mlp, train, sgd, pruned, make):
    model = make_mlp()
    averaged = make(model)
    pruner, optimizer = Pruner(model, PruningConfig(**KEYS)), sgd(model)
    with pruner.attach(optimizer):
        train(model, optimizer, 20, after=lambda step: averaged.update_parameters(model))
    assert pruned(pruner, averaged.module) > 0
    kept = averaged.module[0].weight[pruner.masks()["0"]].clone()
    pruner.apply_masks(averaged)
    assert pruned(pruner, averaged.module) == 0
    assert torch.equal(averaged.module[0].weight[pruner.masks()["0"]], kept)
    assert averaged.module[0].weight.requires_grad == model[0].weight.requires_grad


def test_averages_that_are_put_into_the_model(make_mlp, train, sgd, pruned):
    """Lists of shadow parameters, which are copied into the model for an evaluation."""
    model = make_mlp()
    shadow = [p.detach().clone() for p in model.parameters()]
    pruner, optimizer = Pruner(model, PruningConfig(**KEYS)), sgd(model)
    with pruner.attach(optimizer):
        for step in range(20):
            train(model, optimizer, 1, first=step)
            torch._foreach_lerp_(shadow, list(model.parameters()), 0.1)
        trained = copy.deepcopy(model.state_dict())
        with torch.no_grad():
            torch._foreach_copy_(list(model.parameters()), shadow)
        with pytest.raises(PruningError, match=r"call pruner.apply_masks\(\)$"):
            pruner.state_dict()
        pruner.apply_masks()
        assert pruner.report().pruned_layers == 0.75
        assert torch.equal(model[0].weight, shadow[0] * pruner.masks()["0"])
        model.load_state_dict(trained)
        train(model, optimizer, 1)


def test_a_copy_that_does_not_fit_is_one_line_and_stays_as_it_is(make_mlp, train, sgd):
    model = make_mlp()
    pruner, optimizer = Pruner(model, PruningConfig(**KEYS)), sgd(model)
    with pruner.attach(optimizer):
        train(model, optimizer, 20)
    other = make_mlp(dims=(16, 32, 16, 2))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(PruningError, match=r"^model: 2 has shape \[16, 32\] there; want a copy of the model"):
        pruner.apply_masks(other)
    for name, value in other.state_dict().items():
        assert torch.equal(value, before[name])
    with pytest.raises(PruningError, match="^model: 0 is missing there"):
        pruner.apply_masks(nn.Sequential())
    wrapped = nn.ModuleDict({"ema_model": copy.deepcopy(make_mlp())})
    pruner.apply_masks(wrapped)
    assert (wrapped["ema_model"][0].weight[~pruner.masks()["0"]] == 0).all()

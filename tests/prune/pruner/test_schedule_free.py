"""Optimizers of schedulefree: what they average and what they step are both masked."""

import copy

import pytest
import torch

from trisparse import Pruner, PruningConfig

KEYS = {"pattern": "4x1", "target_sparsity": 0.75, "start_step": 1, "end_step": 16, "pruning_frequency": 5}
FREE = ["AdamWScheduleFree", "SGDScheduleFree", "RAdamScheduleFree"]


def test_an_old_z_is_far_from_its_weight_and_masked_still(make_mlp, train):
    schedulefree = pytest.importorskip("schedulefree")
    model = make_mlp()
    optimizer = schedulefree.SGDScheduleFree(model.parameters(), lr=0.05)
    optimizer.train()
    train(model, optimizer, 1)
    for state in optimizer.state.values():
        state["z"].normal_()
    pruner = Pruner(model, PruningConfig(**KEYS))
    pruner.attach(optimizer)
    assert len(pruner.groups[0].copies) == 2


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("foreach", [True, False])
def test_schedule_free_optimizers(make_mlp, train, pruned, name, foreach):
    """Their `eval()` puts the average in place, and `train()` takes it out; a new run may begin with their state."""
    schedulefree = pytest.importorskip("schedulefree")
    config = PruningConfig(**KEYS)

    def begin():
        model = make_mlp()
        optimizer = getattr(schedulefree, name)(model.parameters(), lr=0.05, foreach=foreach)
        optimizer.train()
        return model, optimizer, Pruner(model, config)

    def evaluate(model, optimizer, pruner):
        optimizer.eval()
        assert pruned(pruner, model) == 0
        state = model.state_dict(), optimizer.state_dict(), pruner.state_dict()
        state = copy.deepcopy(state)
        optimizer.train()
        return state

    model, optimizer, pruner = begin()
    with pruner.attach(optimizer):
        train(model, optimizer, 9)
        state = evaluate(model, optimizer, pruner)
        train(model, optimizer, 15, first=9)
        evaluate(model, optimizer, pruner)
    assert pruner.report().pruned_layers == 0.75
    fresh, other, again = begin()
    other.eval()
    for part, saved in zip((fresh, other, again), state, strict=True):
        part.load_state_dict(saved)
    other.train()
    with again.attach(other):
        train(fresh, other, 15, first=9)
        evaluate(fresh, other, again)
    for name, mask in pruner.masks().items():
        assert torch.equal(mask, again.masks()[name])
    for a, b in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_schedule_free_around_another_optimizer(make_mlp, train, pruned):
    """Its base steps z, which lies in the place of the weight while it does."""
    schedulefree = pytest.importorskip("schedulefree")
    model = make_mlp()
    optimizer = schedulefree.ScheduleFreeWrapper(torch.optim.SGD(model.parameters(), lr=0.05))
    optimizer.train()
    pruner = Pruner(model, PruningConfig(**KEYS))
    with pruner.attach(optimizer):
        train(model, optimizer, 20)
        optimizer.eval()
        assert pruned(pruner, model) == 0
        assert pruner.report().pruned_layers == 0.75

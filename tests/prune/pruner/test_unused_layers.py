"""Layers that no gradient ever reaches: left out where nobody named them, an error where somebody did."""

import pytest
import torch
from torch import nn

from trisparse import MaskedAdamW, Pruner, PruningConfig, PruningError

KEYS = {"pattern": "4x1", "target_sparsity": 0.5, "start_step": 1, "end_step": 9, "pruning_frequency": 4}


class Pooled(nn.Module):
    """`pooler` is used from step `late` on, or never."""

    def __init__(self, late=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.pooler, self.second = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 2)
        self.late, self.step = late, 0

    def forward(self, x):
        self.step += 1
        x = self.first(x).relu()
        if self.late is not None and self.step > self.late:
            x = x + self.pooler(x)
        return self.head(self.second(x).relu())


@pytest.mark.parametrize("make_optimizer", [torch.optim.SGD, torch.optim.AdamW, MaskedAdamW])
@pytest.mark.parametrize("keys", [{}, {"pattern": "2:4", "target_sparsity": 0.5}, {"pruning_type": "snip_progressive"}])
def test_it_leaves_the_group_and_masks_are_those_without_it(train, make_optimizer, keys):
    """Named exclusion and finding out must choose the same, on the way and at the end."""
    pruners = []
    for excluded in ([], ["pooler"]):
        model = Pooled()
        before = model.pooler.weight.clone()
        pruner = Pruner(model, PruningConfig(**KEYS | keys, excluded_op_names=excluded))
        optimizer = make_optimizer(model.parameters(), lr=0.05)
        with pruner.attach(optimizer):
            train(model, optimizer, 12)
        assert torch.equal(model.pooler.weight, before)
        pruners.append(pruner)
    found, named = pruners
    assert found.masks().keys() == named.masks().keys() == {"first", "second"}
    for name, mask in found.masks().items():
        assert torch.equal(mask, named.masks()[name])
    assert found.mask_hash() == named.mask_hash()
    assert "left out, since no gradient reached them: pooler" in str(found.report())
    assert found.report().pruned_layers == named.report().pruned_layers == 0.5
    assert named.report().notes == ()


@pytest.mark.parametrize("keys", [{"op_names": ["pooler", "first"]}, {"op_names": ["."]}])
def test_who_names_it_gets_an_error(train, sgd, keys):
    model = Pooled()
    pruner, optimizer = Pruner(model, PruningConfig(**KEYS, **keys)), sgd(model)
    with pruner.attach(optimizer), pytest.raises(PruningError, match=r"no score for pooler: .*\['\^pooler\$'\]"):
        train(model, optimizer, 5)


def test_a_gradient_that_is_only_infinite_is_an_error_still(train, sgd):
    model = Pooled(late=0)
    model.pooler.weight.register_hook(lambda grad: grad * float("inf"))
    pruner, optimizer = Pruner(model, PruningConfig(**KEYS)), torch.optim.SGD(model.parameters(), lr=0.0)
    with pruner.attach(optimizer), pytest.raises(PruningError, match="no score for pooler: no finite gradient"):
        train(model, optimizer, 5)


@pytest.mark.parametrize("pruning_type", ["snip", "gradient"])
def test_one_that_only_missed_the_scored_step_is_an_error_still(train, sgd, pruning_type):
    """Its gradient came at step 1, but not at step 5, which these criteria score."""
    model = Pooled(late=0)
    pruner, optimizer = Pruner(model, PruningConfig(**KEYS, pruning_type=pruning_type)), sgd(model)
    with pruner.attach(optimizer):
        train(model, optimizer, 1)
        model.late = None
        with pytest.raises(PruningError, match="has no score for pooler: no finite gradient came in this step"):
            train(model, optimizer, 5, first=1)


def test_one_that_is_used_late_stays(train, sgd):
    model = Pooled(late=3)
    pruner, optimizer = Pruner(model, PruningConfig(**KEYS)), sgd(model)
    with pruner.attach(optimizer):
        train(model, optimizer, 10)
    assert pruner.masks().keys() == {"first", "pooler", "second"}


def test_a_model_without_any_gradient_is_an_error(sgd):
    model = Pooled()
    optimizer = sgd(model)
    with Pruner(model, PruningConfig(**KEYS)).attach(optimizer):
        steps = (optimizer.step() for _ in range(5))
        with pytest.raises(PruningError, match="no score for first, pooler, second"):
            list(steps)


@pytest.mark.parametrize("middle", [3, 7])
def test_resumed_equals_uninterrupted(train, sgd, middle):
    """From before the first event that prunes, and from after it; and back, by the same Pruner."""
    config = PruningConfig(**KEYS)
    model = Pooled()
    pruner, optimizer = Pruner(model, config), sgd(model)
    handle = pruner.attach(optimizer)
    train(model, optimizer, middle)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = pruner.state_dict()
    assert len(state["layers"][0]) == (3 if middle == 3 else 2)
    train(model, optimizer, 12 - middle, first=middle)
    want = pruner.masks()
    handle.detach()
    for again, other in ((Pruner(fresh := Pooled(), config), fresh), (pruner, model)):
        other.load_state_dict(weights)
        again.load_state_dict(state)
        optimizer = sgd(other)
        with again.attach(optimizer):
            train(other, optimizer, 12 - middle, first=middle)
        assert again.masks().keys() == want.keys()
        for name, mask in again.masks().items():
            assert torch.equal(mask, want[name])
        assert again.report().notes == ("left out, since no gradient reached them: pooler",)


def test_a_state_that_lacks_a_named_layer_is_refused(train, sgd):
    small = Pruner(Pooled(), PruningConfig(**KEYS, op_names=["first"])).state_dict()
    large = Pruner(Pooled(), PruningConfig(**KEYS, op_names=["first", "second"]))
    small["config"] = large.state_dict()["config"]
    with pytest.raises(PruningError, match="state: of another model"):
        large.load_state_dict(small)


def test_the_history_of_a_run_forgets_it(train, sgd):
    from trisparse.prune.glue.mask_history import begin_history, record_masks

    model = Pooled()
    pruner, optimizer = Pruner(model, PruningConfig(**KEYS)), sgd(model)
    history = begin_history(pruner)
    assert history["layers"] == ["first", "pooler", "second"]
    with pruner.attach(optimizer):
        train(model, optimizer, 10, after=lambda step: record_masks(history, pruner))
    assert history["layers"] == ["first", "second"]
    assert history["weights"] == [512, 512]
    assert sum(history["pruned"][-1]) / sum(history["weights"]) == 0.5
    assert {len(row) for row in history["pruned"]} == {2}

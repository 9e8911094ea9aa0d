"""Weights that leave the model, that come back unseen, and copies of a Pruner."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn

from trisparse import Pruner, PruningError, compress, prune_once

CONFIG = {"pattern": "4x1", "target_sparsity": 0.75, "start_step": 1, "end_step": 4}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4))


def step(model, optimizer):
    model(torch.randn(8, 32)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("change", ["replaced", "deleted", "compressed"])
def test_a_module_that_left_the_model_is_not_vouched_for(change):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(model, CONFIG)
    attachment = pruner.attach(optimizer)
    for _ in range(5):
        step(model, optimizer)
    assert pruner.report().pruned_layers == 0.75
    attachment.detach()
    if change == "replaced":
        model[0] = nn.Linear(32, 64)
    elif change == "deleted":
        del model[0]
    else:
        compress(model, prefer="memory", measure=False)
    for look in (pruner.report, pruner.state_dict):
        with pytest.raises(
            PruningError, match="^0: its module is no longer in the model, so that what is there now is n"
        ):
            look()


class Lookahead:
    """Keeps its slow weights to itself, and writes them back at the last of eight steps."""

    def __init__(self, base):
        self.base, self.param_groups = base, base.param_groups
        self.left, self.slow = 8, [p.detach().clone() for p in base.param_groups[0]["params"]]

    def step(self):
        self.base.step()
        self.left -= 1
        if not self.left:
            for own, slow in zip(self.param_groups[0]["params"], self.slow, strict=True):
                own.data.copy_(slow)

    def zero_grad(self):
        self.base.zero_grad()


def train(model, optimizer):
    with Pruner(model, CONFIG).attach(optimizer):
        for _ in range(8):
            step(model, optimizer)


def test_what_came_back_in_the_last_step_is_said_when_the_block_is_left():
    model = network()
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.warns(
        UserWarning, match="attach: the with block was left with weights that are not pruned: 0.weight: "
    ):
        train(model, optimizer)
    model = network()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize("how", ["copied", "pickled"])
@pytest.mark.parametrize("sparse_training", ["off", "on"])
def test_a_copy_of_an_attached_pruner_is_attached_to_nothing(how, sparse_training):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(model, CONFIG, sparse_training=sparse_training)
    pruner.attach(optimizer)
    for _ in range(2):
        step(model, optimizer)
    if how == "copied":
        other = copy.deepcopy(pruner)
    else:
        buffer = io.BytesIO()
        torch.save(pruner, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    assert "attached" not in repr(other)
    assert other.sparse_layers == []
    optimizers = optimizer, torch.optim.SGD(other.model.parameters(), lr=0.1)
    with pytest.raises(PruningError, match=r"attached already; call detach\(\) on what attach returned"):
        pruner.attach(optimizer)
    other.attach(optimizers[1])
    assert other.sparse_layers == pruner.sparse_layers
    for _ in range(3):
        torch.manual_seed(1)
        step(model, optimizers[0])
        torch.manual_seed(1)
        step(other.model, optimizers[1])
    assert other.report().pruned_layers == pruner.report().pruned_layers == 0.75
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.model.parameters(), strict=True))


@pytest.mark.parametrize(("method", "batches"), [("magnitude", 0), ("wanda", 1), ("sparsegpt", 1), ("dsnot", 1)])
def test_inside_an_autocast_no_forward_sees_weights_as_they_were(method, batches):
    torch.manual_seed(0)
    base = nn.Sequential(*[m for _ in range(3) for m in (nn.Linear(32, 32), nn.ReLU())], nn.Linear(32, 4))
    x = torch.randn(64, 32)
    found = []
    for cached in (True, False):
        model = copy.deepcopy(base)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
            model(x)
            prune_once(model, method, [x] if batches else None, pattern="2:4")
            found += [[layer.weight != 0 for layer in model[::2]], model(x)]
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[2], strict=True))
    assert torch.equal(found[1], found[3])

"""Small models and a training loop for the tests of the pruning layer."""

import itertools

import pytest
import torch
from torch import nn


@pytest.fixture
def make_mlp():
    """Three linear layers; the last is the head. `seed` makes two equal ones."""

    def make(seed=0, dims=(16, 32, 32, 2)):
        torch.manual_seed(seed)
        layers = []
        for i, (a, b) in enumerate(itertools.pairwise(dims)):
            layers += [nn.Linear(a, b)] + ([nn.ReLU()] if i < len(dims) - 2 else [])
        return nn.Sequential(*layers)

    return make


@pytest.fixture
def train():
    """Run `steps` optimizer steps on inputs that depend on the step number only."""

    def run(model, optimizer, steps, first=0, after=None):
        width = next(p for p in model.parameters() if p.dim() == 2).shape[1]
        for step in range(first, first + steps):
            x = torch.randn(8, width, generator=torch.Generator().manual_seed(step))
            (model(x) - 1).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if after:
                after(step + 1)

    return run


@pytest.fixture
def sgd():
    return lambda model, **kw: torch.optim.SGD(model.parameters(), lr=0.05, **kw)

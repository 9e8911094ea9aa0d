"""A state that an earlier layout of the package wrote still loads: it names no module of ours."""

from pathlib import Path

import torch
from torch import nn

from trisparse import Pruner, PruningConfig

FILE = Path(__file__).parent / "written_before" / "pruner.pt"


def test_a_pruner_goes_on_from_it(train):
    state = torch.load(FILE, weights_only=True)
    model = nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2)
    )
    groups = [
        {"op_names": ["^0$"], "pattern": "2:4"},
        {"op_names": ["^2$"], "pattern": "4x1", "pruning_type": "snip_momentum_progressive"},
        {"op_names": ["^4$"], "pattern": "1xchannel", "target_sparsity": 0.5},
    ]
    pruner = Pruner(model, PruningConfig(start_step=1, end_step=8, pruning_frequency=2, pruning_configs=groups))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    pruner.load_state_dict(state["pruner"])
    assert pruner.step_count == 5
    before = pruner.masks()
    assert all((model.get_submodule(name).weight != 0).equal(mask) for name, mask in before.items())
    with pruner.attach(optimizer):
        train(model, optimizer, 4, first=5)
    report = pruner.report()
    assert (report.complete, report.pattern_verified) == (True, True)
    assert all(not (after & ~before[name]).any() for name, after in pruner.masks().items())

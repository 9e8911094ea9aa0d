"""A whole schedule with the kernels under the Pruner gives the masks of the references."""

import copy

import pytest
import torch
from torch import nn

from trisparse import MaskedAdamW, Pruner, PruningConfig
from trisparse.sparse_ops import Plan

CONFIGS = {
    "4x1": {"pattern": "4x1", "target_sparsity": 0.75},
    "4x1 local": {"pattern": "4x1", "target_sparsity": 0.5, "pruning_scope": "local"},
    "bounded": {"pattern": "4x1", "target_sparsity": 0.6, "min_sparsity_ratio_per_op": 0.4, "max_sparsity_ratio_per_op": 0.7},
    "1x1 snip": {"pattern": "1x1", "target_sparsity": 0.9, "pruning_type": "snip"},
    "2:4": {"pattern": "2:4"},
    "2:4 in part": {"pattern": "2:4", "target_sparsity": 0.3, "pruning_type": "magnitude"},
    "rows": {"pattern": "1xchannel", "target_sparsity": 0.5},
    "columns": {"pattern": "channelx1", "target_sparsity": 0.5, "criterion_reduce_type": "max"},
    "progressive": {"pattern": "4x1", "target_sparsity": 0.75, "pruning_type": "snip_momentum_progressive"},
}  # fmt: skip


def train(model, options, make=torch.optim.SGD):
    config = PruningConfig(start_step=1, end_step=7, pruning_frequency=3, exclude_head=False, **options)
    torch.manual_seed(1)
    optimizer = make(model.parameters(), lr=0.01)
    pruner = Pruner(model, config)
    with pruner.attach(optimizer):
        for _ in range(8):
            optimizer.zero_grad()
            model(torch.randn(4, 4, 4, 4)).square().sum().backward()
            optimizer.step()
    return pruner


@pytest.mark.parametrize("name", CONFIGS)
def test_masks_equal_those_of_the_references(name, request):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1), nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 48)
    )
    twin = copy.deepcopy(model)
    options = CONFIGS[name]
    want = train(twin, options).masks()
    request.getfixturevalue("kernels_on_cpu")
    pruner = train(model, options)
    got = pruner.masks()
    assert got.keys() == want.keys()
    assert all(torch.equal(got[key], want[key]) for key in got)
    assert any(not mask.all() for mask in got.values())
    pruner.report()  # zeros are where the masks say


@pytest.mark.parametrize("name", ["4x1", "2:4", "rows", "columns", "progressive"])
def test_masked_adamw_equals_adamw_on_the_references(name, request):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1), nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 48)
    )
    twin = copy.deepcopy(model)
    want = train(twin, CONFIGS[name], torch.optim.AdamW).masks()
    request.getfixturevalue("kernels_on_cpu")
    got = train(model, CONFIGS[name], MaskedAdamW).masks()
    assert all(torch.equal(got[key], want[key]) for key in want)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("kernels_on_cpu")
@pytest.mark.parametrize("pattern", ["1x1", "4x1", "2:4"])
def test_a_weight_may_change_its_strides_on_the_way(pattern):
    model = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Flatten(), nn.Linear(256, 16))
    config = PruningConfig(pattern=pattern, start_step=1, end_step=9, pruning_frequency=2, exclude_head=False)
    pruner = Pruner(model, config)
    for step in range(8):
        if step == 4:
            model.to(memory_format=torch.channels_last)
        model.zero_grad()
        model(torch.randn(2, 16, 4, 4)).square().sum().backward()
        pruner.observe()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight))
        pruner.step()
        pruner.report()  # raises where a pruned weight is not zero


@pytest.mark.usefixtures("kernels_on_cpu")
def test_an_ordinary_step_launches_as_often_for_many_layers_as_for_one(count_launches):
    def launches(layers):
        model = nn.Sequential(*(nn.Linear(32, 32, bias=False) for _ in range(layers)))
        pruner = Pruner(model, PruningConfig(start_step=1, end_step=9, pruning_frequency=2, exclude_head=False))
        for step in range(4):
            for weight in model.parameters():
                weight.grad = torch.randn_like(weight)
            if step == 3:  # behind the first event that prunes, the one at step 3
                count_launches.clear()
            pruner.observe()
            pruner.step()
        return list(count_launches)

    assert launches(1) == launches(8) == ["score_tiles", "score_tiles", "mask_tiles"]


@pytest.mark.usefixtures("kernels_on_cpu")
def test_masked_adamw_makes_one_launch_beside_the_guard(count_launches):
    model = nn.Sequential(*(nn.Linear(32, 32, bias=False) for _ in range(5)))
    optimizer = MaskedAdamW(model.parameters())
    config = PruningConfig(start_step=1, end_step=9, pruning_frequency=2, exclude_head=False)
    with Pruner(model, config).attach(optimizer):
        for _ in range(4):
            count_launches.clear()
            for weight in model.parameters():
                weight.grad = torch.randn_like(weight)
            optimizer.step()
    assert count_launches == ["score_tiles", "step_tiles"]


def test_a_plan_on_the_cpu_builds_no_tables():
    assert Plan().tables("score_units", lambda old, addresses: pytest.fail("built"), [torch.zeros(1)]) == []

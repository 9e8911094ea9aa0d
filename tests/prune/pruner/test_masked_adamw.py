"""MaskedAdamW is AdamW followed by score and mask."""

import copy
import io

import pytest
import torch
from torch import nn

from trisparse import MaskedAdamW, Pruner, PruningConfig, PruningError

CONFIGS = {
    "4x1": {"pattern": "4x1", "target_sparsity": 0.75},
    "2:4 in part": {"pattern": "2:4", "target_sparsity": 0.3},
    "rows, snip": {"pattern": "1xchannel", "target_sparsity": 0.5, "pruning_type": "snip"},
    "magnitude": {"pattern": "1x1", "target_sparsity": 0.9, "pruning_type": "magnitude"},
    "progressive": {"pattern": "4x1", "target_sparsity": 0.75, "pruning_type": "snip_momentum_progressive"},
    "lock": {"pattern": "4x1", "pruning_type": "pattern_lock"},
    "lasso": {"pattern": "4x1", "target_sparsity": 0.5, "reg_type": "group_lasso", "reg_coeff": 0.01},
}


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 16, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(256, 32), nn.LayerNorm(32)]
    return nn.Sequential(*layers, nn.Linear(32, 48))


def groups(model):
    return [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "lr": 3e-3},
    ]


def train(model, make, options):
    window = (
        {}
        if options.get("pruning_type") == "pattern_lock"
        else {"start_step": 1, "end_step": 7, "pruning_frequency": 3}
    )
    config = PruningConfig(**window, exclude_head=False, **options)
    torch.manual_seed(1)
    optimizer = make(groups(model), lr=1e-2, betas=(0.9, 0.95))
    pruner = Pruner(model, config)
    with pruner.attach(optimizer):
        for _ in range(8):
            optimizer.zero_grad()
            model(torch.randn(4, 4, 4, 4)).square().sum().backward()
            optimizer.step()
    return optimizer, pruner


@pytest.mark.parametrize("name", CONFIGS)
def test_on_the_cpu_it_equals_adamw_then_score_then_mask(name):
    model = network()
    twin = copy.deepcopy(model)
    optimizer, pruner = train(model, MaskedAdamW, CONFIGS[name])
    other, want = train(twin, torch.optim.AdamW, CONFIGS[name])
    masks, wanted = pruner.masks(), want.masks()
    assert all(torch.equal(masks[key], wanted[key]) for key in wanted)
    kept = {f"{key}.weight": mask for key, mask in masks.items()}
    for (key, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
        assert torch.equal(mine == 0, theirs == 0)
        mine, theirs, mask = optimizer.state[mine], other.state[theirs], kept.get(key, torch.tensor(True))
        assert mine.keys() == theirs.keys()
        assert mine["step"] == theirs["step"]
        for moment in ("exp_avg", "exp_avg_sq"):  # of what is pruned they may stay
            torch.testing.assert_close(mine[moment] * mask, theirs[moment] * mask, rtol=1e-4, atol=1e-5)
    pruner.report()


def test_it_loads_the_state_of_adamw_and_the_other_way():
    first, second = network(), network()
    optimizer, _ = train(first, torch.optim.AdamW, CONFIGS["4x1"])
    masked = MaskedAdamW(groups(second), lr=1e-2)
    masked.load_state_dict(optimizer.state_dict())
    again = torch.optim.AdamW(groups(network()), lr=1e-2)
    again.load_state_dict(masked.state_dict())
    assert again.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()


def test_without_a_pruner_it_is_adamw():
    model = network()
    twin = copy.deepcopy(model)
    for net, make in ((model, MaskedAdamW), (twin, torch.optim.AdamW)):
        torch.manual_seed(1)
        optimizer = make(groups(net), lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.randn(4, 4, 4, 4)).square().sum().backward()
            optimizer.step()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


def test_what_is_not_pruned_is_stepped_in_one_pass():
    model = network()
    optimizer = MaskedAdamW(groups(model), lr=1e-2)
    model(torch.randn(4, 4, 4, 4)).square().sum().backward()
    with torch.profiler.profile() as profiler:
        optimizer.step()
    calls = {event.key: event.count for event in profiler.key_averages()}
    assert calls["aten::_fused_adamw_"] == len(optimizer.param_groups)
    assert "aten::lerp_" not in calls


def test_what_lies_otherwise_than_its_gradient_is_stepped_right():
    torch.manual_seed(0)
    params = [
        nn.Parameter(torch.randn(6, 4).t()),
        nn.Parameter(torch.randn(4, 12)[:, ::2]),
        nn.Parameter(torch.randn(3)),
    ]
    twins = [nn.Parameter(p.detach().clone(memory_format=torch.contiguous_format)) for p in params]
    for p, twin in zip(params, twins, strict=True):
        p.grad = torch.randn(p.shape)
        twin.grad = p.grad.clone()
    MaskedAdamW(params, lr=0.1).step()
    torch.optim.AdamW(twins, lr=0.1).step()
    for p, twin in zip(params, twins, strict=True):
        torch.testing.assert_close(p, twin)


def test_a_sparse_gradient_is_refused():
    embedding, bias = nn.Embedding(10, 4, sparse=True), nn.Parameter(torch.zeros(4))
    optimizer = MaskedAdamW([{"params": [bias]}, {"params": embedding.parameters()}])
    (embedding(torch.tensor([1])) + bias).sum().backward()
    with pytest.raises(
        PruningError, match="step: MaskedAdamW has no step for sparse gradients; give them to torch.optim"
    ):
        optimizer.step()
    assert not bias.any(), "nothing was stepped"


def test_detached_it_is_adamw_again():
    model = network()
    optimizer, pruner = train(model, MaskedAdamW, CONFIGS["4x1"])
    assert not optimizer.groups
    assert not pruner.groups[0].is_stepped_here
    model(torch.randn(4, 4, 4, 4)).square().sum().backward()
    optimizer.step()
    assert (model[3].weight == 0).sum() < model[3].weight.numel() // 2, "masks are held no longer"


@pytest.mark.parametrize("option", ["amsgrad", "maximize", "capturable", "differentiable"])
def test_options_without_a_step_are_refused(option):
    with pytest.raises(PruningError, match=f"{option}: MaskedAdamW has no step with {option}"):
        MaskedAdamW(network().parameters(), **{option: True})


def test_it_serves_one_pruner_of_single_precision():
    model = network()
    optimizer = MaskedAdamW(model.parameters())
    config = PruningConfig(op_names=["0"], target_sparsity=0.5, start_step=1, end_step=2)
    other = PruningConfig(op_names=["3"], target_sparsity=0.5, start_step=1, end_step=2)
    Pruner(model, config).attach(optimizer)
    with pytest.raises(PruningError, match="attach: MaskedAdamW serves a Pruner already"):
        Pruner(model, other).attach(optimizer)
    double = network().double()
    with pytest.raises(PruningError, match=r"attach: 0 is torch.float64, and MaskedAdamW computes in float32"):
        Pruner(double, config).attach(MaskedAdamW(double.parameters()))


def test_an_old_attachment_does_not_detach_a_new_one():
    model = network()
    optimizer = MaskedAdamW(model.parameters())
    config = PruningConfig(target_sparsity=0.5, start_step=1, end_step=2)
    first = Pruner(model, config).attach(optimizer)
    first.detach()
    pruner = Pruner(model, config)
    pruner.attach(optimizer)
    first.detach()
    assert optimizer.groups is pruner.groups
    assert pruner.groups[0].is_stepped_here


def test_counts_of_steps_are_each_parameters_own():
    """They lie side by side, and yet a copy, a loaded state and a parameter without a gradient go their own way."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    weights = [layer.weight for layer in model]
    optimizer = MaskedAdamW(model.parameters(), lr=0.1)
    config = PruningConfig(pattern="4x1", target_sparsity=0.5, start_step=1, end_step=9, exclude_head=False)

    def step(*without):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().sum().backward()
        for i in without:
            weights[i].grad = None
        optimizer.step()
        return [int(optimizer.state[weight]["step"]) for weight in weights]

    with Pruner(model, config).attach(optimizer):
        assert step() == [1, 1, 1]
        saved = copy.deepcopy(optimizer.state_dict())
        assert step(0) == [1, 2, 2]
        assert step() == [2, 3, 3]
        assert {int(state["step"]) for state in saved["state"].values()} == {1}
        optimizer.load_state_dict(saved)
        assert step() == [2, 2, 2]
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        assert step() == [3, 3, 3]
        file.seek(0)
        assert {int(state["step"]) for state in torch.load(file)["state"].values()} == {2}

"""What went wrong in the system this one succeeds, one test each, where no other file has it."""

import io
import itertools
import math

import pytest
import torch
from torch import nn

from trisparse import Pruner, PruningConfig, PruningError, prune_once


def run(model, config, grad=None, steps=None, x=None):
    """Train with a gradient of our choosing, or a real one."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = Pruner(model, config)
    width = next(model.parameters()).shape[1]
    with pruner.attach(optimizer):
        for step in range(steps or max(g.end_step for g in config.groups)):
            if grad is None:
                inputs = torch.randn(8, width, generator=torch.Generator().manual_seed(step)) if x is None else x
                model(inputs).square().mean().backward()
            else:
                for p in model.parameters():
                    p.grad = grad(p)
            optimizer.step()
            optimizer.zero_grad()
    return pruner.report()


def mlp(*dims):
    return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(dims)), nn.Identity())


@pytest.mark.parametrize("events", [1, 2, 3, 7, 29, 88])
@pytest.mark.parametrize("decay", ["exp", "cos", "cubic"])
def test_a_2_4_model_is_2_4_whatever_the_number_of_events(events, decay):
    config = PruningConfig(pattern="2:4", sparsity_decay_type=decay, start_step=1, end_step=1 + events)
    model = mlp(16, 12, 16)
    report = run(model, config, grad=torch.randn_like)
    assert report.pattern_verified
    assert report.pruned_layers == 0.5
    for module in model[:2]:
        assert ((module.weight.reshape(-1, 4) != 0).sum(1) == 2).all()


def test_conv_masks_stay_blocks_when_a_layer_reaches_its_bound():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 64, 3), nn.AdaptiveAvgPool2d(1))
    with torch.no_grad():
        model[0].weight.mul_(1e-3)  # cheapest by far: it runs into its bound
    config = PruningConfig(
        pattern="4x1",
        target_sparsity=0.5,
        max_sparsity_ratio_per_op=0.6,
        pruning_type="magnitude",
        start_step=1,
        end_step=20,
    )
    report = run(model, config, x=torch.randn(2, 4, 8, 8))
    assert report.layers[0].sparsity == pytest.approx(0.6, abs=0.01)
    assert report.layers[0].sparsity <= 0.6
    assert abs(report.pruned_layers - 0.5) < 1e-3
    for conv in model[:2]:
        zeros = (conv.weight == 0).view(-1, 4, *conv.weight.shape[1:]).sum(1)
        assert set(zeros.unique().tolist()) <= {0, 4}


@pytest.mark.parametrize("pattern", ["4x1", "2:4", "1xchannel", "1x1"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_scores_prune_the_target_and_no_more(pattern, value):
    model = mlp(16, 16, 16)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    config = PruningConfig(pattern=pattern, target_sparsity=0.5, start_step=1, end_step=6, pruning_frequency=2)
    report = run(model, config, grad=lambda p: torch.full_like(p, value))
    assert report.pruned_layers == 0.5
    assert report.pattern_verified


def test_half_a_weight_rounds_up():
    model = mlp(5, 3, 3)
    report = run(
        model,
        PruningConfig(pattern="1x1", target_sparsity=0.5, start_step=1, end_step=1, op_names=["^0$"]),
        grad=torch.randn_like,
    )
    assert report.layers[0].zeros == 8  # of 15


def test_dead_inputs_do_not_overprune_n_m():
    model = mlp(16, 16, 16)

    def grad(p):
        g = torch.randn_like(p)
        if p.dim() == 2:
            g[:, 2:9] = 0
        return g

    assert run(model, PruningConfig(pattern="2:4", start_step=1, end_step=9), grad=grad).pruned_layers == 0.5


@pytest.mark.parametrize(("pattern", "target"), [("1:4", 0.75), ("3:4", 0.25), ("1:4", 0.3), ("2:8", 0.5)])
def test_n_m_accounts_for_what_it_removes(pattern, target):
    report = run(
        mlp(16, 16, 16),
        PruningConfig(pattern=pattern, target_sparsity=target, start_step=1, end_step=5),
        grad=torch.randn_like,
    )
    assert report.pruned_layers == pytest.approx(target, abs=0.01)
    assert report.pattern_verified == (target == 1 - int(pattern[0]) / int(pattern[2]))


def test_group_lasso_cannot_blow_up():
    model = mlp(16, 16, 16)
    config = PruningConfig(
        pattern="4x1",
        reg_type="group_lasso",
        reg_coeff=10.0,
        target_sparsity=0.5,
        start_step=1,
        end_step=50,
        pruning_frequency=10,
    )
    before = max(float(p.detach().abs().max()) for p in model.parameters())
    run(model, config)
    assert all(p.isfinite().all() for p in model.parameters())
    assert max(float(p.detach().abs().max()) for p in model.parameters()) <= before


def test_a_model_with_a_pruner_can_be_saved():
    model = mlp(8, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Pruner(model, PruningConfig(start_step=1, end_step=2)).attach(optimizer)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)[0].weight, model[0].weight)


def test_progressive_counts_initial_zeros_once():
    model = mlp(16, 16, 16)
    prune_once(model, pattern="4x1", target_sparsity=0.25)
    config = PruningConfig(
        pattern="4x1", target_sparsity=0.5, pruning_type="snip_momentum_progressive", lock_init_sparsity=True,
        sparsity_decay_type="linear", start_step=1, end_step=17, pruning_frequency=4,
    )  # fmt: skip
    report = run(model, config, grad=torch.randn_like)
    assert report.pruned_layers == 0.5
    assert report.pattern_verified


def test_min_and_max_per_layer_are_guarantees():
    model = mlp(32, 32, 32, 32)
    scale = {id(model[0].weight): 1e-3, id(model[1].weight): 1.0, id(model[2].weight): 1e3}
    config = PruningConfig(
        pattern="4x1",
        target_sparsity=0.5,
        min_sparsity_ratio_per_op=0.2,
        max_sparsity_ratio_per_op=0.7,
        start_step=1,
        end_step=8,
    )
    report = run(model, config, grad=lambda p: torch.randn_like(p) * scale.get(id(p), 1.0))
    low, middle, high = (row.sparsity for row in report.layers)
    assert low <= 0.7
    assert math.isclose(low, 0.7, abs_tol=0.005)
    assert high >= math.floor(0.2 * 256) / 256
    assert report.pruned_layers == pytest.approx(0.5, abs=0.002)
    assert low > middle > high


def test_what_is_not_here_is_refused_by_name():
    with pytest.raises(PruningError, match="pattern: 'channelxchannel' is not known"):
        PruningConfig(pattern="channelxchannel", start_step=1, end_step=2)
    for kind, function in (("retrain_free", "retrain_free"), ("sparse_gpt", "sparsegpt")):
        with pytest.raises(PruningError, match=f"pruning_type: {kind} prunes by batches, .* call .*{function}"):
            PruningConfig(pruning_type=kind, start_step=1, end_step=2)
        with pytest.raises(PruningError, match=f"pruning_configs.*{function}|pruning_type: .*{function}"):
            PruningConfig.from_neural_compressor({"pruning_configs": [{"pruning_type": kind}], "end_step": 2})

"""Progressive pruning, pattern lock, group lasso."""

import pytest
import torch
from torch import nn

from trisparse import Pruner, PruningConfig, PruningError


def one_layer(rows=8, cols=8):
    return nn.Sequential(nn.Linear(cols, rows, bias=False))


def hand_driven(model, config, scores=None):
    """Advance a Pruner step by step; the gradient makes the score of weight i equal to i + 1."""
    pruner = Pruner(model, config)
    weight = model[0].weight

    def step(**kw):
        with torch.no_grad():
            weight.grad = torch.arange(1.0, weight.numel() + 1).view(weight.shape) if scores is None else scores
            weight.fill_(1.0)
        pruner.observe()
        pruner.step(**kw)
        return int((weight == 0).sum())

    return pruner, step


@pytest.mark.parametrize(
    ("frequency", "want"),
    [
        # target 0.5 of 64 weights in two events, linear: 16, then 16 more
        (8, {9: 4, 10: 4, 11: 8, 12: 8, 13: 12, 14: 12, 15: 16, 16: 16, 17: 32, 18: 32}),
        (4, {5: 4, 6: 8, 7: 12, 8: 16, 9: 32}),
        (2, {3: 8, 4: 16, 5: 32}),
        (1, {2: 16, 3: 32}),
        (5, {6: 4, 7: 8, 8: 12, 9: 16, 10: 16, 11: 32}),
    ],
)
def test_progressive_prunes_an_event_in_four_parts(frequency, want):
    config = PruningConfig(
        pattern="4x1", target_sparsity=0.5, pruning_type="snip_progressive", sparsity_decay_type="linear",
        start_step=1, end_step=1 + 2 * frequency, pruning_frequency=frequency, exclude_head=False,
    )  # fmt: skip
    pruner, step = hand_driven(one_layer(), config)
    got = {s: step() for s in range(1, max(want) + 1)}
    assert {s: got[s] for s in want} == want
    assert pruner.report().pattern_verified


def test_progressive_takes_the_cheapest_weights_first_and_may_cut_a_unit():
    config = PruningConfig(
        pattern="1xchannel", target_sparsity=0.5, pruning_type="snip_progressive", sparsity_decay_type="linear",
        start_step=1, end_step=9, pruning_frequency=4, exclude_head=False,
    )  # fmt: skip
    model = one_layer(rows=4, cols=6)
    pruner, step = hand_driven(model, config)
    for _ in range(5):
        step()  # the event at 5 fixes row 0 alone: 6 of 24 weights, a quarter is 1
    assert model[0].weight.int().tolist()[0] == [0, 1, 1, 1, 1, 1]
    assert not pruner.report().pattern_verified
    step()
    assert model[0].weight.int().tolist()[0] == [0, 0, 0, 1, 1, 1]
    step(), step()
    assert model[0].weight.int().tolist()[0] == [0] * 6


def test_the_rest_goes_at_end_step():
    config = PruningConfig(
        pattern="4x1", target_sparsity=0.5, pruning_type="snip_progressive", sparsity_decay_type="linear",
        start_step=1, end_step=10, pruning_frequency=8, exclude_head=False,
    )  # fmt: skip
    _, step = hand_driven(one_layer(), config)
    counts = [step() for _ in range(11)]
    assert counts[8:] == [8, 32, 32]  # one event, at 9; end_step 10 comes before its second part


def test_lock_holds_blocks_whose_weights_sum_to_zero(train):
    """[1, -1, 2, -2] is dense, though its sum is zero."""
    model = one_layer(8, 4)
    with torch.no_grad():
        model[0].weight[:4, 0] = torch.tensor([1.0, -1.0, 2.0, -2.0])
        model[0].weight[4:, 1] = 0.0
    pruner = Pruner(model, PruningConfig(pattern="4x1", pruning_type="pattern_lock", exclude_head=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with pruner.attach(optimizer):
        train(model, optimizer, 5)
    assert (model[0].weight == 0).nonzero().tolist() == [[4, 1], [5, 1], [6, 1], [7, 1]]
    assert pruner.report().complete


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:4"])
def test_lock_keeps_an_nm_model_as_it_is(train, pattern):
    from trisparse import prune_once

    model = one_layer(8, 16)
    prune_once(model, pattern=pattern, exclude_head=False)
    before = model[0].weight != 0
    pruner = Pruner(model, PruningConfig(pattern=pattern, pruning_type="pattern_lock", exclude_head=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with pruner.attach(optimizer):
        train(model, optimizer, 5)
    assert torch.equal(model[0].weight != 0, before)
    assert pruner.report().pattern_verified


@pytest.mark.parametrize("pattern", ["4x1", "2:4"])
def test_initial_zeros_stay_and_count(train, pattern):
    from trisparse import prune_once

    model = one_layer(8, 16)
    prune_once(model, pattern=pattern, target_sparsity=0.25, exclude_head=False)
    zero = model[0].weight == 0
    config = PruningConfig(
        pattern=pattern,
        target_sparsity=0.5,
        lock_init_sparsity=True,
        start_step=5,
        end_step=8,
        exclude_head=False,
    )
    pruner = Pruner(model, config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)

    def held(step):
        assert not model[0].weight[zero].any()
        if step < 6:
            assert int((model[0].weight == 0).sum()) == int(zero.sum())

    with pruner.attach(optimizer):
        train(model, optimizer, 9, after=held)
    assert pruner.report().pruned_layers == 0.5


def test_initial_n_m_groups_count_as_pruned_whatever_their_scores():
    """Half of the groups are 2:4 already; their gradients are the largest, and still they are the ones that count."""
    from trisparse import prune_once

    model = one_layer(8, 16)
    prune_once(model, pattern="2:4", target_sparsity=0.25, exclude_head=False)
    zero = model[0].weight == 0
    config = PruningConfig(
        pattern="2:4", target_sparsity=0.25, pruning_type="gradient", lock_init_sparsity=True, start_step=1, end_step=1,
        exclude_head=False,
    )  # fmt: skip
    pruner = Pruner(model, config)
    groups = zero.view(-1, 4).any(1, keepdim=True).expand(-1, 4).reshape(8, 16)
    model[0].weight.grad = torch.where(groups, 100.0, 1.0)
    pruner.observe()
    pruner.step()
    assert torch.equal(model[0].weight == 0, zero)


def test_group_lasso_shrinks_by_the_norm_of_the_weights():
    config = PruningConfig(
        pattern="2x1", target_sparsity=0.5, reg_type="group_lasso", reg_coeff=0.5, start_step=2, end_step=3,
        pruning_frequency=1, exclude_head=False,
    )  # fmt: skip
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Identity())
    pruner = Pruner(
        model,
        config,
    )
    weight = model[0].weight
    for step, want in [(1, [[3.0, 0.01], [4.0, 0.0]]), (2, [[2.97, 0.0], [3.96, 0.0]])]:
        with torch.no_grad():
            weight.copy_(torch.tensor([[3.0, 0.01], [4.0, 0.0]]))
        weight.grad = torch.ones_like(weight)
        pruner.observe()
        pruner.step(lr=0.1)  # lr * c = 0.05: the first unit has norm 5, the second 0.01
        assert torch.allclose(weight, torch.tensor(want), atol=1e-6), step


def test_group_lasso_takes_the_learning_rate_of_the_weights_own_group():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    config = PruningConfig(
        pattern="4x1", reg_type="group_lasso", reg_coeff=1.0, target_sparsity=0.25, start_step=1, end_step=50,
        pruning_frequency=25, exclude_head=False,
    )  # fmt: skip
    pruner = Pruner(model, config)
    pruner.observe()
    with pytest.raises(PruningError, match="lr: group_lasso needs the learning rate"):
        pruner.step()
    pruner = Pruner(model, config)
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[1].parameters(), "lr": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    before = [m.weight.detach().clone() for m in model]
    with pruner.attach(optimizer):
        for m in model:
            m.weight.grad = torch.zeros_like(m.weight)
        optimizer.step()
    norm = before[0].norm(dim=0)
    assert torch.allclose(model[0].weight, before[0] * (1 - 0.1 / norm).clamp(min=0))
    assert torch.equal(model[1].weight, before[1])

"""`block_mask`: the gradient of a mask, read from weights and gradients, against masks that autograd knows."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from trisparse import MaskedAdamW, Pruner, PruningConfig, PruningError
from trisparse.prune.choosing.mask_gradient import mask_gradient, score_masks


def config(**keys):
    keys = {"target_sparsity": 0.25, "start_step": 1, "end_step": 1, **keys}
    return PruningConfig(**{"pruning_type": "block_mask", "exclude_head": False, **keys})


@pytest.mark.parametrize("block", [(1, 1), (4, 1), (2, 3), (8, 1), (1, 6)])
def test_it_is_what_autograd_gives_for_a_real_mask(block):
    """Also where the weight is used twice, and not linearly, and where a unit is pruned."""
    torch.manual_seed(0)
    weight, x = torch.randn(8, 6, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    n, m = block
    mask = torch.ones(8 // n, 6 // m, dtype=torch.float64)
    mask[0, 0] = 0
    weight[:n, :m] = 0  # as a Pruner leaves them

    def loss(w):
        h = functional.linear(x, w).tanh()
        return (
            functional.linear(h @ w, w).square().sum() + w.exp().sum()
        ).log()  # three products, and one that is none

    mask.requires_grad_()
    loss(weight * mask.repeat_interleave(n, 0).repeat_interleave(m, 1)).backward()
    dense = weight.clone().requires_grad_()
    loss(dense).backward()
    assert torch.allclose(mask_gradient(weight, dense.grad, block), mask.grad.float(), rtol=1e-5, atol=1e-7)
    assert mask.grad[0, 0] == 0


def test_of_a_convolution_and_its_channels():
    torch.manual_seed(0)
    conv, x = nn.Conv2d(3, 4, 2, bias=False), torch.randn(2, 3, 5, 5)
    mask = torch.ones(3, requires_grad=True)
    functional.conv2d(x, conv.weight * mask[None, :, None, None]).square().sum().backward()
    (layer,) = Pruner(nn.Sequential(conv), config(pattern="channelx1", target_sparsity=0.5)).layers
    conv.weight.grad = None
    conv(x).square().sum().backward()
    assert torch.allclose(mask_gradient(layer.view, layer.grad_view, layer.block)[:, 0], mask.grad, rtol=1e-5)


def test_scores_by_hand():
    """Products of a column cancel before the absolute value is taken: that is what sets it apart from snip."""
    weight = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    grads = [torch.tensor([[2.0, 1.0], [-1.0, 4.0]]), torch.tensor([[4.0, 0.0], [0.0, 8.0]])]
    score, seen = torch.zeros(1, 2), torch.tensor([False])
    score_masks([score], [weight], [grads[0]], [(2, 1)], seen)
    assert score.tolist() == [[1.0, 2.0]]  # |1·2 + 3·(-1)|, |2·1 + (-1)·4|
    assert seen.tolist() == [True]
    score_masks([score], [weight], [grads[1]], [(2, 1)], seen, grad_scale=2.0)
    assert torch.allclose(score, torch.tensor([[0.9 * 1 + 4 / 2, 0.9 * 2 + 8 / 2]]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_no_step(value):
    score, seen = torch.full((1, 2), 3.0), torch.tensor([False])
    score_masks([score], [torch.zeros(2, 2)], [torch.tensor([[1.0, value], [0.0, 0.0]])], [(2, 1)], seen)
    score_masks([score], [torch.zeros(2, 2)], [None], [(2, 1)], seen)
    assert score.tolist() == [[3.0, 3.0]]
    assert seen.tolist() == [False]


def test_scores_of_half_precision_are_summed_in_fp32():
    weight = torch.full((1, 300), 1.0, dtype=torch.bfloat16)
    grad = torch.full((1, 300), 1.0, dtype=torch.bfloat16)
    assert mask_gradient(weight, grad, (1, 300)).tolist() == [[300.0]]  # bf16 has no 257


def test_a_pruner_takes_the_lowest_of_the_running_mean():
    """Columns score 0.9 · |a| + |b|: 0.9 + 1, 0 + 0.5, 3.6 + 0, 1.8 + 0.5; by snip the second would be the highest."""
    model = nn.Sequential(nn.Linear(4, 2, bias=False))
    weight = model[0].weight
    nn.init.ones_(weight)
    pruner = Pruner(model, config(pattern="channelx1", start_step=2, end_step=2))
    for grad in ([[0.5, 3.0, 4.0, 1.0], [0.5, -3.0, 0.0, 1.0]], [[1.0, 2.0, 0.0, 0.5], [0.0, -1.5, 0.0, 0.0]]):
        weight.grad = torch.tensor(grad)
        pruner.observe()
        pruner.step()
    assert (weight == 0).all(0).tolist() == [False, True, False, False]
    assert pruner.report().pattern_verified


def test_masked_adamw_prunes_as_adamw_does(train, make_mlp):
    keys = {"pattern": "4x1", "target_sparsity": 0.5, "end_step": 6, "pruning_frequency": 2, "exclude_head": True}
    found = []
    for kind in (torch.optim.AdamW, MaskedAdamW):
        model = make_mlp()
        optimizer = kind(model.parameters(), lr=1e-2)
        pruner = Pruner(model, config(**keys))
        with pruner.attach(optimizer):
            train(model, optimizer, 8)
        assert pruner.report().pruned_layers == 0.5
        found.append(pruner.masks())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_resumed_run_goes_on_bit_for_bit(train, make_mlp):
    keys = {"pattern": "1xchannel", "target_sparsity": 0.5, "end_step": 9, "pruning_frequency": 4, "exclude_head": True}
    whole, half = make_mlp(), make_mlp()

    def run(model, steps, state=None, first=0):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        pruner = Pruner(model, config(**keys))
        if state:
            pruner.load_state_dict(state)
        with pruner.attach(optimizer):
            train(model, optimizer, steps, first=first)
        return pruner

    run(whole, 10)
    state = copy.deepcopy(run(half, 6).state_dict())
    run(half, 4, state, first=6)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), half.parameters(), strict=True))


def test_mistakes():
    with pytest.raises(PruningError, match="pruning_type: block_mask has one mask a block, and 2:4 chooses weights"):
        config(pattern="2:4", target_sparsity=0.5)
    with pytest.raises(PruningError, match="criterion_reduce_type: 'max' has no effect"):
        config(criterion_reduce_type="max")
    with pytest.raises(PruningError, match="start_step: block_mask has no gradient to score before the first step"):
        config(start_step=0, end_step=0)

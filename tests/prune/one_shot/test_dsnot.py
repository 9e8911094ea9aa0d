"""DSnoT: swaps worked out by hand, and what they are for."""

import pytest
import torch
from torch import nn

from trisparse import PruningError, prune_once
from trisparse.prune.one_shot.dsnot import swapped
from trisparse.prune.one_shot.sparsegpt import keep_of_matrix
from trisparse.prune.one_shot.wanda import keep_of_rows
from trisparse.sparse_ops import nm_mask


def test_swaps_by_hand():
    # pruned 4, 1 and -0.5: the error is 4.5. By |share| / variance 1 / 0.5 comes before 4 / 4, so column 1 comes back;
    # of the kept negative ones column 4 is cheaper (2) than column 2 (3). 4.5 - 3 - 1 = 0.5, made.
    # Then column 0 for column 2: 0.5 - 1 - 4 = -4.5 is further from zero, not made; nothing is left.
    first = [4.0, 1, -1, 2, -3, -0.5]
    # pruned 6, 1, -5: the error is 2. Column 0 for column 2: 2 - 1 - 6 = -5, not made; column 1 for it: 0, made.
    second = [6.0, 1, -1, 2, -3, -5]
    share = torch.tensor([first, [-s for s in first], second, [0.0, 0, -1, 2, -3, 0]])
    keep = torch.tensor([0, 0, 1, 1, 1, 0]).bool().expand(4, 6)
    variance = torch.tensor([4, 0.5, 1, 1, 1, 1])
    cost = torch.tensor([[9.0, 9, 3, 1, 2, 9]] * 4)
    cost[2, 2] = 1
    want = [[0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 0, 0], [0, 1, 0, 1, 1, 0], [0, 0, 1, 1, 1, 0]]
    before = keep.clone()
    assert swapped(keep, share, variance, cost).int().tolist() == want
    assert keep.equal(before)


def test_swaps_of_groups_by_hand():
    # the error is 3 + 1 + 1 + 0.25 = 5.25; 3 comes first. For column 2: 5.25 - 1 - 3 = 1.25, for column 3: 4.25; both
    # are nearer to zero, column 2 is cheaper (1, not 5). Then column 1, before 4 in the tie: only column 3 is left to
    # go, 1.25 + 2 - 1 = 2.25, not made. Column 4, for 5: 1.25 - 4 - 1, no, though it is cheaper; for 6: 0.75, made.
    # Column 7 for 5: 0.75 - 4 - 0.25, not made.
    share = torch.tensor([[3, 1, -1, 2, 1, -4, 0.5, 0.25]])
    keep = torch.tensor([[0, 0, 1, 1, 0, 1, 1, 0]]).bool()
    cost = torch.tensor([[9.0, 9, 1, 5, 9, 2, 7, 9]])
    assert swapped(keep, share, torch.ones(8), cost, 4).int().tolist() == [[1, 0, 0, 1, 1, 1, 0, 0]]


@pytest.mark.parametrize("group", [None, 4])
def test_what_cannot_be_swapped_stays(group):
    share = torch.tensor([[1.0, -1, 2, -2], [0, 0, 0, 0], [1, 1, 1, 1]])
    for keep in (torch.ones(3, 4).bool(), torch.zeros(3, 4).bool()):
        assert swapped(keep, share, torch.zeros(4), share.abs(), group).equal(keep)


def test_inputs_that_never_vary_come_first_and_those_that_are_zero_never():
    share, keep = torch.tensor([[3, 0, 1, -1, 0.5]]), torch.tensor([[0, 0, 0, 1, 1]]).bool()  # the error is 4
    variance = torch.tensor([1.0, 0, 0, 1, 1])  # 4 - 1 - 1 = 2
    assert swapped(keep, share, variance, torch.ones(1, 5)).int().tolist() == [[0, 0, 1, 0, 1]]


def layer_and_inputs():
    torch.manual_seed(0)
    x = torch.randn(96, 32) * torch.logspace(-1, 1, 32) + torch.randn(32)
    x[40:] += 3 * torch.randn(32)  # batches that differ
    x[:, 5] = 0
    return nn.Sequential(nn.Linear(32, 24), nn.Linear(24, 2)), x


@pytest.mark.parametrize("mask", ["wanda", "magnitude"])
@pytest.mark.parametrize("keys", [{"pattern": "1x1", "target_sparsity": 0.6}, {"pattern": "2:4"}], ids=str)
def test_it_refines_a_mask_by_the_inputs_of_all_batches(keys, mask):
    model, x = layer_and_inputs()
    weight = model[0].weight.detach().clone()
    report = prune_once(model, "dsnot", [x[:7], x[7:40], x[40:]], dsnot_mask=mask, **keys)
    cost = weight.abs() * x.norm(dim=0)
    is_nm, score = keys["pattern"] == "2:4", cost if mask == "wanda" else weight.abs()
    keep = nm_mask(score, 2, 4) if is_nm else {"wanda": keep_of_rows, "magnitude": keep_of_matrix}[mask](score, 0.6)
    mean, variance = x.double().mean(0).float(), x.double().var(0, correction=0).float()
    want = swapped(keep, weight * mean, variance, cost, 4 if is_nm else None)
    now = model[0].weight.detach()
    assert now.equal(weight.where(want, 0))
    assert want.sum(1).equal(keep.sum(1))
    assert report.pattern_verified
    lost = [((x @ (weight.where(k, 0) - weight).t()).mean(0)).abs().mean() for k in (keep, want)]
    assert lost[1] < 0.3 * lost[0]


def test_it_starts_from_one_of_two_masks():
    model, x = layer_and_inputs()
    with pytest.raises(PruningError, match="dsnot_mask: want wanda or magnitude, got 'sparsegpt'"):
        prune_once(model, "dsnot", [x], pattern="2:4", dsnot_mask="sparsegpt")
    with pytest.raises(PruningError, match="dsnot_mask: has no effect without method 'dsnot'"):
        prune_once(model, "wanda", [x], pattern="2:4", dsnot_mask="magnitude")

"""Plans: what is kept when addresses move, and what is not."""

import pytest
import torch

from trisparse.kernels.plan import launches, plan_selection, plan_units
from trisparse.kernels.tables import STRIDED
from trisparse.sparse_ops import Plan


def layers(device):
    weights = [torch.randn(8, 32, device=device), torch.randn(8, 30, device=device), torch.randn(16, 32, device=device)]
    return weights, [torch.randn_like(w) for w in weights], [(4, 1)] * 3


def test_moved_operands_keep_all_but_the_addresses(device):
    weights, grads, blocks = layers(device)
    before = plan_units(weights, [grads], blocks)
    moved = [grad.clone() for grad in grads]
    after = plan_units(weights, [moved], blocks, before)
    for old, new in zip(launches(before), launches(after), strict=True):
        assert old.chunks is new.chunks
        assert old.shapes is new.shapes
        assert torch.equal(old.pointers[:, 0], new.pointers[:, 0])
        assert not torch.equal(old.pointers[:, 1], new.pointers[:, 1])
    addresses = {int(p) for launch in launches(after) for p in launch.pointers[:, 1]}
    assert addresses == {grad.data_ptr() for grad in moved}


def test_an_operand_that_is_not_aligned_changes_the_launches(device):
    weights, grads, blocks = layers(device)
    before = plan_units(weights, [grads], blocks)
    unaligned = torch.randn(8 * 32 + 1, device=device)[1:].view(8, 32)
    after = launches(plan_units(weights, [[unaligned, *grads[1:]]], blocks, before))
    strided = [len(launch.shapes) for launch in after if launch.layout == STRIDED]
    assert strided == [2]
    assert [len(launch.shapes) for launch in launches(before) if launch.layout == STRIDED] == [1]


@pytest.mark.usefixtures("kernels_on_cpu")
def test_tables_follow_the_operands():
    weights, grads, blocks = layers("cpu")
    plan, made = Plan(), []

    def tables(weights, grads):
        def make(old, addresses):
            made.append(old)
            return plan_units(weights, [grads], blocks, old)

        return plan.tables("op", make, weights, grads)

    first = tables(weights, grads)
    assert tables(weights, grads) is first
    moved = tables(weights, [grad.clone() for grad in grads])
    assert made == [None, first]
    for changed in (
        [None, *grads[1:]],
        [grads[0].bfloat16(), *grads[1:]],
        [grads[0].t().contiguous().t(), *grads[1:]],
    ):
        made.clear()
        tables(weights, changed)
        assert made == [None]
    assert moved is not first


def test_arguments_are_checked_until_they_pass():
    plan, outcomes = Plan(), iter([ValueError("no"), ValueError("no"), None])

    def check():
        if error := next(outcomes):
            raise error

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            plan.check("op", check)
    plan.check("op", check)
    plan.check("op", lambda: pytest.fail("checked again"))


def test_the_largest_layer_comes_first_and_every_unit_once(device):
    weights, grads, blocks = layers(device)
    launch = launches(plan_units(weights, [grads], blocks))[0]
    assert launch.chunks[:, 0].tolist() == sorted(launch.chunks[:, 0].tolist(), reverse=True)
    seen = set()
    for entry, r, c in launch.chunks.tolist():
        down, across = launch.shapes[entry, :2].tolist()
        for i in range(r, min(r + launch.tile[0], down)):
            for j in range(c, min(c + launch.tile[1], across)):
                assert (entry, i, j) not in seen
                seen.add((entry, i, j))
    assert len(seen) == sum(int(d * a) for d, a in launch.shapes[:, :2])


def test_a_worked_example(device):
    launch = launches(plan_units([torch.zeros(8, 32, device=device)], [[torch.zeros(2, 32, device=device)]], [(4, 1)]))[
        0
    ]
    assert launch.shapes.tolist() == [[2, 32, 32, 4, 1, 0, 1, 32, 0]]
    assert launch.chunks.tolist() == [[0, 0, 0]]


def test_a_selection_moves_too(device):
    scores, masks = [torch.rand(9, device=device)], [torch.ones(9, dtype=torch.bool, device=device)]
    before = plan_selection(scores, masks, [4])
    after = plan_selection([scores[0].clone()], masks, [4], before)
    assert all(old is new for old, new in zip(before[2:], after[2:], strict=True))
    assert not torch.equal(before[1], after[1])

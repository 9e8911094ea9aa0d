"""cost_groups: the best two of every four scores and the cost of the others, all layers in one call.

Bytes a weight: the fp32 score read, a bool written, and the fp32 cost of its group.
"""

import torch

from trisparse.sparse_ops import Plan, cost_groups, nm_mask
from trisparse.sparse_ops.choosing.cost_groups import cost_groups_reference


def test_cost_groups(compare, model, device):
    name, shapes = model
    scores = [torch.rand(shape, device=device) for shape in shapes]
    best = [torch.empty_like(score, dtype=torch.bool) for score in scores]
    costs = [torch.empty(rows, cols // 4, device=device) for rows, cols in shapes]
    plan = Plan()

    def ours():
        cost_groups(scores, best, costs, 2, 4, plan=plan)

    def one_by_one():
        for score, keep, cost in zip(scores, best, costs, strict=True):
            keep.copy_(nm_mask(score, 2, 4))
            torch.sum(score.where(~keep, 0).view(*cost.shape, 4), 2, out=cost)

    def check():
        ours()
        want = [torch.empty_like(t) for t in best], [torch.empty_like(t) for t in costs]
        cost_groups_reference(scores, scores, *want, 2, 4)
        assert all(torch.equal(a, b) for a, b in zip(best + costs, want[0] + want[1], strict=True))

    count = sum(score.numel() for score in scores)
    compare("cost_groups", f"{name} 2:4", ours, {"nm_mask, where, sum": one_by_one}, count * 6, check)

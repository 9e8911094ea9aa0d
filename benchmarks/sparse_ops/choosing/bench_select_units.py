"""select_units: 90 % of the 4x1 units of all layers, against what one would call without it.

Nothing is pruned before. Bytes a unit: the fp32 score read once, the mask reset, read and written; more is
read, in several passes.
"""

import torch

from trisparse.sparse_ops import Plan, select_units


def test_select_units(compare, model, device):
    name, shapes = model
    scores = [torch.randn(rows // 4, cols, device=device).square() for rows, cols in shapes]
    masks = [torch.ones_like(score, dtype=torch.bool) for score in scores]
    units = [score.numel() for score in scores]
    k, plan = int(0.9 * sum(units)), Plan()
    low, high = torch.zeros(len(units), dtype=torch.int64, device=device), torch.tensor(units, device=device)
    target = torch.tensor([4 * k], device=device)

    every = [torch.ones_like(mask) for mask in masks]

    def ours():
        torch._foreach_copy_(masks, every)
        select_units(scores, masks, [4] * len(units), low, high, target, plan)

    def kthvalue():
        threshold = torch.kthvalue(torch.cat([score.view(-1) for score in scores]), k).values
        return [score > threshold for score in scores]

    def sort():
        threshold = torch.sort(torch.cat([score.view(-1) for score in scores])).values[k - 1]
        return [score > threshold for score in scores]

    def topk():
        best = torch.topk(torch.cat([score.view(-1) for score in scores]), sum(units) - k, sorted=False).indices
        return torch.zeros(sum(units), dtype=torch.bool, device=device).scatter_(0, best, True)

    def check():
        ours()
        flat = torch.cat([score.view(-1) for score in scores])
        want = torch.ones_like(flat, dtype=torch.bool)
        want[torch.argsort(flat, stable=True)[:k]] = False
        assert torch.equal(torch.cat([mask.view(-1) for mask in masks]), want)

    rivals = {"cat + kthvalue": kthvalue, "cat + sort": sort, "cat + topk + scatter": topk}
    compare("select_units", name, ours, rivals, sum(units) * 8, check)

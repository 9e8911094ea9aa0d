"""The kernels over N:M groups of all layers against plain torch: ties, specials, odd and empty shapes."""

import math

import pytest
import torch

from trisparse.kernels.gpu.cost_groups import cost_groups
from trisparse.kernels.gpu.thin_groups import thin_groups
from trisparse.sparse_ops.choosing.cost_groups import cost_groups_reference
from trisparse.sparse_ops.choosing.thin_groups import thin_groups_reference

PATTERNS = [(1, 2), (2, 4), (3, 5), (4, 8), (16, 32), (7, 7)]


def layers(m, device):
    """Scores of several layers: more groups than a program takes, one that is empty, ties, and what is not finite."""
    scores = [torch.rand(6, 100 * m), torch.zeros(0, 2 * m), torch.randint(0, 3, (3, 5 * m)).float()]
    scores[2][0, ::3], scores[2][1, ::2] = math.inf, math.nan
    return [score.to(device) for score in scores]


def same(a, b):
    return all(torch.equal(x.nan_to_num(nan=-1.0), y.nan_to_num(nan=-1.0)) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("is_ranked", [False, True], ids=["by scores", "by others"])
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_costs_equal_the_reference(device, n, m, is_ranked):
    scores = layers(m, device)
    ranked = [-score for score in scores] if is_ranked else scores
    found, wanted = (
        (
            [torch.empty_like(s, dtype=torch.bool) for s in scores],
            [s.new_empty(len(s), s.shape[1] // m) for s in scores],
        )
        for _ in range(2)
    )
    cost_groups(ranked, scores, *found, n, m)
    cost_groups_reference(ranked, scores, *wanted, n, m)
    assert all(torch.equal(a, b) for a, b in zip(found[0], wanted[0], strict=True))
    assert same(found[1], wanted[1])


@pytest.mark.parametrize("m", [2, 4, 5, 32])
def test_thinned_equal_the_reference(device, m):
    kept, best = ([torch.rand(*s.shape, device=device) > 0.3 for s in layers(m, device)] for _ in range(2))
    before, after = ([torch.rand(len(k), k.shape[1] // m, device=device) > 0.5 for k in kept] for _ in range(2))
    want = [k.clone() for k in kept]
    thin_groups(kept, best, before, after, m)
    thin_groups_reference(want, best, before, after, m)
    assert all(torch.equal(a, b) for a, b in zip(kept, want, strict=True))

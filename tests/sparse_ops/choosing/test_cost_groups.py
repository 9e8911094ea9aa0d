"""Best of N:M groups and what the others cost: by hand, against the definition, and mistakes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trisparse.sparse_ops import cost_groups, nm_mask


def run(scores, n, m, ranked=None):
    best = [torch.empty(score.shape, dtype=torch.bool) for score in scores]
    costs = [torch.empty(len(score), score.shape[1] // m) for score in scores]
    cost_groups(scores, best, costs, n, m, ranked)
    return best, costs


def test_by_hand():
    scores = torch.tensor(
        [[1.0, 5.0, 2.0, 4.0, 3.0, 3.0, 3.0, 3.0], [0.0, 0.0, math.inf, 7.0, math.nan, 1.0, 2.0, 0.5]]
    )
    (best,), (costs,) = run([scores], 2, 4)
    assert best.int().tolist() == [[0, 1, 0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0, 1, 0]]
    assert costs.tolist() == [[3.0, 6.0], [0.0, 1.5]]


def test_what_is_ranked_otherwise():
    scores, ranked = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[9.0, 8.0, -1.0, -1.0]])
    (best,), (costs,) = run([scores], 2, 4, [ranked])
    assert best.tolist() == [[True, True, False, False]]
    assert costs.tolist() == [[7.0]]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([(1, 2), (2, 4), (3, 5), (4, 8), (8, 32), (7, 7)]), st.integers(0, 4), st.data())
def test_equals_the_definition(pattern, rows, data):
    n, m = pattern
    values = data.draw(st.lists(st.floats(0, 100, width=32), min_size=3 * m, max_size=3 * m))
    scores = torch.tensor(values).repeat(rows, 1)
    (best,), (costs,) = run([scores], n, m)
    assert torch.equal(best, nm_mask(scores, n, m))
    for row, keep, found in zip(scores.view(-1, m), best.view(-1, m), costs.flatten(), strict=True):
        total = torch.tensor(0.0)
        for score, is_best in zip(row, keep, strict=True):
            total = total + torch.where(is_best, 0.0, score)
        assert found == total


def test_mistakes():
    scores, best, costs = [torch.rand(2, 8)], [torch.ones(2, 8, dtype=torch.bool)], [torch.rand(2, 2)]
    with pytest.raises(ValueError, match="n, m: want 1 <= n <= m <= 32, got 5:4"):
        cost_groups(scores, best, costs, 5, 4)
    with pytest.raises(ValueError, match=r"scores\[0\]: want \[rows, cols\] with cols a multiple of 3, got \[2, 8\]"):
        cost_groups(scores, best, costs, 1, 3)
    with pytest.raises(ValueError, match=r"costs\[0\]: want \[2, 2\], got \[2, 4\]"):
        cost_groups(scores, best, [torch.rand(2, 4)], 2, 4)
    with pytest.raises(TypeError, match=r"ranked\[0\]: want contiguous torch.float32, got torch.float64"):
        cost_groups(scores, best, costs, 2, 4, [scores[0].double()])
    with pytest.raises(ValueError, match="best: want 1 entries like scores, got 2"):
        cost_groups(scores, best * 2, costs, 2, 4)
    cost_groups([], [], [], 2, 4)

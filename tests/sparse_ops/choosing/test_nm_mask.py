"""N:M masks: by hand, against a stable sort, and valid whatever the input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trisparse.sparse_ops import nm_mask

PATTERNS = [(1, 2), (1, 4), (2, 4), (3, 4), (2, 3), (4, 8), (3, 7), (8, 16), (16, 32), (4, 4)]


def test_golden_two_of_four():
    scores = torch.tensor(
        [
            [1.0, 2.0, 3.0, 4.0, 4.0, 3.0, 2.0, 1.0],
            [1.0, 1.0, 1.0, 1.0, 0.0, 2.0, 0.0, 0.0],
            [math.inf, math.nan, 9.0, math.inf, -1.0, -2.0, -0.0, 0.0],
        ]
    )
    want = [
        [0, 0, 1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 0, 0],  # a tie keeps the lower index
        [1, 1, 0, 0, 0, 0, 1, 1],  # NaN above inf
    ]
    assert nm_mask(scores, 2, 4).int().tolist() == want


@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_a_stable_sort(n, m, dtype):
    scores = torch.randint(0, 4, (5, 3 * m)).to(dtype) - 1
    best = torch.sort(scores.view(-1, m).float(), dim=1, descending=True, stable=True).indices[:, :n]
    want = torch.zeros(15, m, dtype=torch.bool).scatter_(1, best, True).view(scores.shape)
    assert torch.equal(nm_mask(scores, n, m), want)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(PATTERNS), st.data())
def test_every_group_keeps_exactly_n(pattern, data):
    n, m = pattern
    values = data.draw(st.lists(st.floats(width=32), min_size=2 * m, max_size=2 * m))
    mask = nm_mask(torch.tensor(values).view(1, -1), n, m)
    assert (mask.view(-1, m).sum(1) == n).all()


def test_empty_and_wrong_shapes():
    assert nm_mask(torch.zeros(0, 8), 2, 4).shape == (0, 8)
    assert nm_mask(torch.zeros(3, 0), 2, 4).shape == (3, 0)
    with pytest.raises(ValueError, match="multiple of 4, got"):
        nm_mask(torch.zeros(2, 6), 2, 4)
    with pytest.raises(ValueError, match="want 1 <= n <= m <= 32, got 5:4"):
        nm_mask(torch.zeros(2, 8), 5, 4)

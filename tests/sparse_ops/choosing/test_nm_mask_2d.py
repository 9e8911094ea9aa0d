"""The reference against all 90 patterns of a tile."""

import itertools
import math

import pytest
import torch

from trisparse.sparse_ops import nm_mask_2d


def patterns():
    pairs = list(itertools.combinations(range(4), 2))
    found = []
    for rows in itertools.product(pairs, repeat=4):
        mask = torch.zeros(4, 4)
        for row, columns in enumerate(rows):
            mask[row, list(columns)] = 1
        if (mask.sum(0) == 2).all():
            found.append(mask)
    return torch.stack(found)


def tiles(matrix):
    rows, cols = matrix.shape
    return matrix.view(rows // 4, 4, cols // 4, 4).permute(0, 2, 1, 3)


@pytest.mark.parametrize("values", [torch.randn, lambda s: torch.randint(-3, 4, s).float(), torch.zeros])
def test_no_pattern_keeps_more(values):
    assert len(patterns()) == 90
    w = values((24, 40))
    mask = nm_mask_2d(w)
    assert (tiles(mask).sum(2) == 2).all()
    assert (tiles(mask).sum(3) == 2).all()
    kept = (tiles(w.abs().double()) * tiles(mask)).sum((2, 3))
    best = (tiles(w.abs().double())[:, :, None] * patterns()).sum((3, 4)).amax(2)
    torch.testing.assert_close(kept, best, rtol=1e-6, atol=0)


def test_infinite_and_nan_weights_are_kept():
    w = torch.randn(8, 8)
    w[0, 0], w[1, 2], w[5, 5] = math.inf, math.nan, -math.inf
    mask = nm_mask_2d(w)
    assert mask[0, 0]
    assert mask[1, 2]
    assert mask[5, 5]


def test_equal_weights_take_the_first_pattern():
    want = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]).bool()
    assert torch.equal(nm_mask_2d(torch.ones(4, 4)), want)


def test_a_mistake_names_the_argument():
    with pytest.raises(ValueError, match=r"weight: want \[rows, cols\], both multiples of 4, got \[4, 6\]"):
        nm_mask_2d(torch.zeros(4, 6))

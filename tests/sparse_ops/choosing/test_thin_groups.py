"""Groups that are pruned keep their best: by hand, and mistakes."""

import pytest
import torch

from trisparse.sparse_ops import thin_groups


def flags(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def test_by_hand():
    kept = flags([1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 0])
    best = flags([1, 0, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0])
    before, after = flags([1, 1, 0, 0]), flags([0, 1, 0, 0])  # pruned now, dense still, pruned before twice
    thin_groups([kept], [best], [before], [after], 4)
    assert kept.int().tolist() == [[1, 0, 0, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 0]]


def test_what_was_gone_stays_gone():
    kept = flags([0, 1, 1, 1])
    thin_groups([kept], [flags([1, 1, 0, 0])], [flags([1])], [flags([0])], 4)
    assert kept.int().tolist() == [[0, 1, 0, 0]]


def test_mistakes():
    kept, best, units = flags([1] * 8), flags([1] * 8), flags([1, 1])
    with pytest.raises(ValueError, match=r"kept\[0\]: want \[rows, cols\] with cols a multiple of 3, got \[1, 8\]"):
        thin_groups([kept], [best], [units], [units], 3)
    with pytest.raises(ValueError, match=r"after\[0\]: want \[1, 2\], got \[1, 8\]"):
        thin_groups([kept], [best], [units], [best], 4)
    with pytest.raises(TypeError, match=r"best\[0\]: want contiguous torch.bool, got torch.int8"):
        thin_groups([kept], [best.to(torch.int8)], [units], [units], 4)
    thin_groups([], [], [], [], 4)

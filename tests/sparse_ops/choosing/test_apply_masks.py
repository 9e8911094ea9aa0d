"""Masked writes: exact zeros, in place, through strided views."""

import math

import pytest
import torch

from trisparse.sparse_ops import apply_masks, score_units


def test_what_is_written_counts_as_changed():
    """Autograd, and layers that keep what they prepared for a weight, go by the version."""
    weight, score, seen = torch.nn.Parameter(torch.randn(8, 8)), torch.zeros(2, 8), torch.zeros(1, dtype=torch.bool)
    before = weight._version, score._version, seen._version
    score_units([score], [weight.detach()], [torch.ones(8, 8)], [(4, 1)], seen)
    assert weight._version == before[0]
    assert score._version > before[1]
    assert seen._version > before[2]
    apply_masks([weight.detach()], [torch.rand(2, 8) < 0.5], [(4, 1)])
    assert weight._version > before[0]


def test_golden_blocks():
    weight = torch.arange(1.0, 17.0).view(4, 4)
    apply_masks([weight], [torch.tensor([[True, False], [False, True]])], [(2, 2)])
    assert weight.tolist() == [[1, 2, 0, 0], [5, 6, 0, 0], [0, 0, 11, 12], [0, 0, 15, 16]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_clears_every_bit_and_moves_nothing(dtype):
    weight = torch.tensor([[-1.0, math.nan, -math.inf, 2.0]], dtype=dtype)
    pointer = weight.data_ptr()
    apply_masks([weight], [torch.tensor([[False, False, False, True]])], [(1, 1)])
    assert weight.tolist() == [[0.0, 0.0, 0.0, 2.0]]
    assert not torch.signbit(weight).any()
    assert weight.data_ptr() == pointer


def test_kept_bits_are_untouched():
    weight = torch.tensor([[math.nan, -0.0, math.inf, 1e-45]])
    before = weight.clone()
    apply_masks([weight], [torch.ones(1, 4, dtype=torch.bool)], [(1, 1)])
    assert torch.equal(weight.view(torch.int32), before.view(torch.int32))


def test_conv_view_writes_through():
    conv = torch.ones(4, 3, 2, 2)
    view = conv.flatten(2).transpose(1, 2)  # [out, taps, in]
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 5] = False  # rows 2 and 3, tap 1, input 2
    apply_masks([view], [mask], [(2, 1)])
    want = torch.ones(4, 3, 2, 2)
    want[2:, 2, 0, 1] = 0
    assert torch.equal(conv, want)


def test_transposed_view_writes_through():
    weight = torch.ones(3, 4)
    apply_masks([weight.t()], [torch.tensor([[True, False, True], [True, True, True]])], [(2, 1)])
    assert weight.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1]]


def test_a_mistake_names_the_argument():
    weight = torch.ones(4, 4)
    with pytest.raises(ValueError, match=r"masks\[0\]: want \[2, 4\]"):
        apply_masks([weight], [torch.ones(4, 4, dtype=torch.bool)], [(2, 1)])
    with pytest.raises(TypeError, match=r"masks\[0\]: want contiguous torch.bool"):
        apply_masks([weight], [torch.ones(2, 4)], [(2, 1)])
    apply_masks([torch.ones(0, 4)], [torch.ones(0, 4, dtype=torch.bool)], [(1, 1)])

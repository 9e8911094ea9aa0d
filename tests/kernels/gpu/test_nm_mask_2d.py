"""Transposable masks against the reference, exactly, and against all 90 patterns."""

import math

import pytest
import torch

from trisparse.kernels.gpu.nm_mask_2d import nm_mask_2d
from trisparse.sparse_ops.choosing.nm_mask_2d import nm_mask_2d_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(4, 4), (8, 36), (12, 1032)])
@pytest.mark.parametrize("kind", ["random", "few values", "zeros", "specials"])
def test_equals_the_reference(device, dtype, shape, kind):
    w = torch.randn(shape)
    if kind == "few values":
        w = torch.randint(-2, 3, shape)
    if kind == "zeros":
        w = torch.zeros(shape)
    if kind == "specials":
        w.view(-1)[::5], w.view(-1)[3::7], w.view(-1)[2::9] = math.inf, math.nan, -math.inf
    w = w.to(device, dtype)
    assert torch.equal(nm_mask_2d(w), nm_mask_2d_reference(w))


def test_nothing(device):
    assert nm_mask_2d(torch.zeros(0, 8, device=device)).shape == (0, 8)

"""The masked write against the reference, bit for bit, over every layout."""

import math

import pytest
import torch

from trisparse.kernels.gpu.apply_masks import apply_masks
from trisparse.sparse_ops.choosing.apply_masks import apply_masks_reference
from trisparse.sparse_ops.choosing.units import grid_shape

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def poison(shape):
    values = torch.randn(shape)
    values.view(-1)[::7] = math.nan
    values.view(-1)[3::11] = -math.inf
    values.view(-1)[5::13] = -0.0
    return values


def storage_bits(weight):
    """All bits of the storage a view lies in, also those that the view leaves out."""
    whole = torch.empty(0, dtype=BITS[weight.element_size()], device=weight.device)
    return whole.set_(weight.untyped_storage()).cpu().clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_bits_are_those_of_the_reference(layout, device, dtype):
    weight, block = layout(dtype, poison)
    mask = torch.rand(grid_shape(weight, block)) < 0.5
    before = weight.untyped_storage().clone()
    apply_masks_reference([weight], [mask.to(device)], [block])
    want = storage_bits(weight)
    weight.untyped_storage().copy_(before)
    apply_masks([weight], [mask.to(device)], [block])
    assert torch.equal(storage_bits(weight), want)


@pytest.mark.parametrize("keep", [True, False])
def test_all_or_nothing(device, keep):
    weight = torch.randn(8, 32, device=device)
    before = weight.clone()
    apply_masks([weight], [torch.full((2, 32), keep, device=device)], [(4, 1)])
    assert torch.equal(weight, before if keep else torch.zeros_like(weight))


@pytest.mark.parametrize("layers", [1, 9])
def test_launches_do_not_grow_with_the_layers(device, count_launches, layers):
    weights = [torch.randn(8, 32, device=device) for _ in range(layers)]
    masks = [torch.zeros(2, 32, dtype=torch.bool, device=device) for _ in range(layers)]
    apply_masks(weights, masks, [(4, 1)] * layers)
    assert count_launches == ["mask_tiles"]
    assert not any(weight.any() for weight in weights)


def test_no_layers(device):
    apply_masks([], [], [])
    apply_masks([torch.zeros(0, 16, device=device)], [torch.zeros(0, 16, dtype=torch.bool, device=device)], [(4, 1)])

"""Packing kernels against the reference, to the bit."""

import math

import pytest
import torch

from trisparse.kernels.gpu.mask_24 import mask_24
from trisparse.kernels.gpu.pack_24 import pack_24
from trisparse.kernels.gpu.repack_24 import repack_24
from trisparse.kernels.gpu.unpack_24 import unpack_24
from trisparse.kernels.layouts_24 import QUADS
from trisparse.sparse_ops.two_four.pack_24 import pack_24_reference
from trisparse.sparse_ops.two_four.packed_24 import mask_of
from trisparse.sparse_ops.two_four.unpack_24 import unpack_24_reference


def same(got, want):
    return all(torch.equal(a.view(torch.int16), b.view(torch.int16)) for a, b in zip(got, want, strict=True))


def few_values(shape, dtype, device):
    """Ties, zeros of both signs, infinities and NaN among random values."""
    weight = torch.randn(shape)
    weight.view(-1)[::3] = torch.randint(-1, 2, weight.view(-1)[::3].shape).float()
    weight.view(-1)[1::7], weight.view(-1)[2::29], weight.view(-1)[5::31] = -0.0, -math.inf, math.nan
    return weight.to(device, dtype)


CASES = [("magnitude", layout, (68, 72)) for layout in QUADS]
CASES += [
    (select, layout, (36, 60)) for select in ("scores", "mask", "patterns") for layout in ("bitmask", "cslt_sm90")
]
CASES += [("patterns", "cslt_sm80", (132, 132))]  # more than one of its largest tiles, both ways


@pytest.mark.parametrize(("select", "layout", "shape"), CASES)
@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
def test_equals_the_reference(device, layout, shape, both, select):
    weight = few_values(shape, torch.bfloat16, device)
    first = pack_24_reference(weight, None, "magnitude", both, layout, torch.bfloat16)
    chooser = {
        "magnitude": None,
        "scores": few_values(shape, torch.float32, device),
        "mask": mask_of(first[2], *shape) & (torch.rand(shape, device=device) < 0.8),
        "patterns": first[2],
    }[select]
    got = pack_24(weight, chooser, select, both, layout, torch.bfloat16)
    assert same(got, pack_24_reference(weight, chooser, select, both, layout, torch.bfloat16))
    dense = unpack_24(got[0], *shape, layout)
    assert same([dense], [unpack_24_reference(got[0], *shape, layout)])
    if select != "patterns":
        assert torch.equal(mask_24(got[2], *shape), mask_of(got[2], *shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
def test_other_dtypes(device, dtype, both):
    weight = few_values((68, 60), torch.float16, device).to(dtype)
    got = pack_24(weight, None, "magnitude", both, "cslt_sm90", torch.float16)
    assert same(got, pack_24_reference(weight, None, "magnitude", both, "cslt_sm90", torch.float16))


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_rows_that_make_no_whole_tile(device, rows):
    weight = torch.randn(rows, 20, device=device).half()
    got = pack_24(weight, None, "magnitude", False, "cutlass_sm80", torch.float16)
    assert same(got, pack_24_reference(weight, None, "magnitude", False, "cutlass_sm80", torch.float16))
    assert torch.equal(mask_24(got[2], rows, 20), mask_of(got[2], rows, 20))


@pytest.mark.parametrize("layout", ["cutlass_sm80", "cslt_sm90"])
@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
def test_values_anew(device, layout, both):
    weight, other = (torch.randn(68, 60, device=device).half() for _ in range(2))
    packed, packed_t, patterns = pack_24(weight, None, "magnitude", both, layout, torch.float16)
    repack_24(packed, packed_t, other, patterns, layout)
    want = pack_24_reference(other, patterns, "patterns", both, layout, torch.float16)
    assert same([packed, packed_t], want[:2])


def test_a_weight_at_an_odd_place_in_memory(device):
    weight = torch.randn(1 + 64 * 64, device=device).half()[1:].view(64, 64)
    got = pack_24(weight, None, "magnitude", True, "cslt_sm90", torch.float16)
    assert same(got, pack_24_reference(weight, None, "magnitude", True, "cslt_sm90", torch.float16))


def test_a_strided_weight_and_none(device):
    weight = torch.randn(64, 72, device=device).half()
    got = pack_24(weight.t(), None, "magnitude", True, "cslt_sm90", torch.float16)
    assert same(got, pack_24_reference(weight.t(), None, "magnitude", True, "cslt_sm90", torch.float16))
    packed, packed_t, patterns = pack_24(weight, None, "magnitude", True, "cslt_sm90", torch.float16)
    turned = patterns.t().contiguous().t()  # the same numbers, otherwise in memory
    again = pack_24(weight, turned, "patterns", True, "cslt_sm90", torch.float16)
    assert same(again[:2], (packed, packed_t))
    assert torch.equal(mask_24(turned, 64, 72), mask_of(patterns, 64, 72))
    repack_24(packed, packed_t, weight * 2, turned, "cslt_sm90")
    assert torch.equal(unpack_24(packed, 64, 72, "cslt_sm90"), (weight * 2).where(mask_of(patterns, 64, 72), 0))
    for shape in ((0, 8), (4, 0)):
        nothing = torch.empty(shape, device=device).half()
        packed, _, patterns = pack_24(nothing, None, "magnitude", True, "cslt_sm90", torch.float16)
        assert packed.numel() == 0
        assert unpack_24(packed, *shape, "cslt_sm90").shape == shape
        assert mask_24(patterns, *shape).shape == shape

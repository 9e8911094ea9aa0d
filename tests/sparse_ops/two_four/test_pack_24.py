"""Packing in plain torch: against torch's own conversion, formulas written another way, and tables by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.sparse._semi_structured_conversions import (
    _calculate_meta_reordering_scatter_offsets,
    sparse_semi_structured_from_dense_cutlass,
)

from trisparse.kernels.layouts_24 import (
    MULTIPLE,
    QUADS,
    WORD_BITS,
    nibble_table,
    packed_size,
    padded,
    shift_of,
    word_of,
)
from trisparse.sparse_ops import mask_24, nm_mask, nm_mask_2d, pack_24, repack_24, unpack_24
from trisparse.sparse_ops.two_four.packed_24 import Packed24

LAYOUTS = list(QUADS)


def bits(tensor):
    return tensor.view(torch.int16)


def nibble_offsets(rows, cols, layout):
    """Offset in nibbles of every quad."""
    row, quad = torch.arange(rows)[:, None], torch.arange(cols // 4)[None, :]
    shift = torch.as_tensor(shift_of(row, quad, layout)).expand(rows, cols // 4)
    return word_of(row, quad // QUADS[layout], rows, cols, layout) * (WORD_BITS[layout] // 4) + shift // 4


def by_hand(rows, cols, layout):
    """The same, from the libraries' sources."""
    want = torch.empty(rows, cols // 4, dtype=torch.long)
    tile = _calculate_meta_reordering_scatter_offsets(32, 2, torch.int16, "cpu").view(32, 2)
    whole = _calculate_meta_reordering_scatter_offsets(rows, cols // 16, torch.int16, "cpu").view(rows, cols // 16)
    order = [0, 4, 1, 5, 2, 6, 3, 7]  # quads of 32 columns, byte by byte
    for r in range(rows):
        for quad in range(cols // 4):
            c = quad * 4
            if layout == "bitmask":
                want[r, quad] = r * cols // 4 + quad
            elif layout == "cutlass_sm80":
                want[r, quad] = whole[r, c // 16] * 4 + quad % 4
            elif layout == "cslt_sm80":
                word = r // 128 * 512 + c // 64 * 512 * (rows // 128) + r % 128 // 32 * 64 + c % 64 // 32 * 256
                want[r, quad] = (word + tile[r % 32, c % 32 // 16]) * 4 + quad % 4
            else:
                byte = r // 64 * 8 * cols + c // 32 * 256 + r % 64 // 16 * 64 + r % 8 * 8 + order.index(quad % 8)
                want[r, quad] = byte * 2 + (r % 16 >= 8)
    return want


@pytest.mark.parametrize("layout", LAYOUTS)
def test_places_of_the_metadata(layout):
    rows, cols = 256, 384
    offsets = nibble_offsets(rows, cols, layout)
    assert torch.equal(offsets, by_hand(rows, cols, layout))
    assert torch.equal(offsets.flatten().sort().values, torch.arange(rows * cols // 4))


def test_the_worked_example():
    row = torch.tensor([[0.0, 5, 0, 7, 2, 0, 0, 3]]).half()
    for layout, nibbles in (("cslt_sm90", [0xD, 0xC]), ("cutlass_sm80", [0xD, 0xC]), ("bitmask", [0b1010, 0b1001])):
        matrix = pack_24(row, layout, mask=row != 0)
        values, size = packed_size(1, 8, layout, 2)
        assert matrix.packed.numel() == size == padded(1, 8, layout)[0] * padded(1, 8, layout)[1] * 9 // 16
        assert matrix.packed[:4].tolist() == [5, 7, 2, 3]
        metadata = matrix.packed[values:].view(torch.uint8)
        at = nibble_offsets(64, 64, layout)[0, :2]
        assert [int(metadata[n // 2] >> (4 * (n % 2)) & 0xF) for n in at] == nibbles


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([torch.float16, torch.bfloat16]), st.integers(0, 2**31))
def test_equals_torchs_conversion(down, across, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(down * 64, across * 64, generator=generator).to(dtype)
    weight[torch.rand(weight.shape, generator=generator) < 0.3] = 0  # groups with fewer than two left, too
    matrix = pack_24(weight, "cutlass_sm80", mask=nm_mask(weight, 2, 4, magnitude=True) & (weight != 0))
    values, metadata = sparse_semi_structured_from_dense_cutlass(unpack_24(matrix))
    assert torch.equal(bits(matrix.packed), torch.cat([bits(values).flatten(), metadata.flatten()]))


def test_places_added_where_fewer_are_kept():
    sets = torch.tensor([[n >> j & 1 for j in range(4)] for n in range(16)]).bool()
    sets = sets[sets.sum(1) <= 2]
    dense = torch.zeros(64, 64).half()
    dense[: len(sets), :4][sets] = 1.0
    _, metadata = sparse_semi_structured_from_dense_cutlass(dense)
    assert torch.equal(bits(pack_24(dense, "cutlass_sm80", mask=dense != 0).packed[64 * 32 :]), metadata.flatten())
    assert all(bin(nibble).count("1") == 2 for nibble in nibble_table("bitmask"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 4), (8, 12), (130, 196), (64, 128), (0, 8), (3, 0)])
def test_unpacking_gives_the_masked_weight(layout, shape):
    weight = torch.randn(shape).bfloat16()
    mask = nm_mask(torch.rand(shape), 2, 4) & (torch.rand(shape) < 0.8)
    matrix = pack_24(weight, layout, mask=mask)
    assert torch.equal(unpack_24(matrix), weight.where(mask, 0))
    assert torch.equal(mask_24(matrix), mask)
    assert matrix.packed_t.numel() == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_ways(layout):
    weight = torch.randn(132, 72).bfloat16()
    matrix = pack_24(weight, layout, transposed=True)
    mask = nm_mask_2d(weight)
    assert torch.equal(mask_24(matrix), mask)
    turned = Packed24(matrix.packed_t, matrix.packed, matrix.patterns, 72, 132, layout)
    assert torch.equal(unpack_24(turned), weight.where(mask, 0).t())
    assert torch.equal(bits(matrix.packed_t), bits(pack_24(weight.t(), layout, mask=mask.t()).packed))


def test_what_is_chosen():
    weight = torch.tensor(
        [
            [1.0, -2, 3, -4],
            [1, 1, 1, 1],
            [0, -0.0, 0, 0],
            [math.inf, 1, -math.inf, 2],
            [1, math.nan, math.inf, 2],
            [-0.0, 0, 0, -5],
        ]
    )
    matrix = pack_24(weight, "bitmask")
    kept = [[2, 3], [0, 1], [0, 1], [0, 2], [1, 2], [0, 3]]
    assert [row.nonzero().flatten().tolist() for row in mask_24(matrix)] == kept
    values = matrix.packed[: 64 * 32].view(64, 32)[:6, :2]
    want = weight.gather(1, torch.tensor(kept))
    assert torch.equal(values.contiguous().view(torch.int32), want.view(torch.int32))  # signs of zeros and NaN too


def test_patterns_choose_and_nothing_has_a_gradient():
    weight, other = torch.randn(6, 16, requires_grad=True), torch.randn(6, 16)
    patterns = pack_24(other, "cslt_sm90").patterns
    matrix = pack_24(weight, "cslt_sm90", patterns=patterns)
    assert torch.equal(mask_24(matrix), nm_mask(other, 2, 4, magnitude=True))
    assert matrix.patterns is patterns
    assert not matrix.packed.requires_grad
    assert not pack_24(other, "cslt_sm90", scores=weight).packed.requires_grad


def test_scores_choose():
    weight, scores = torch.randn(8, 16), torch.randn(8, 16)
    assert torch.equal(mask_24(pack_24(weight, "cslt_sm90", scores=scores)), nm_mask(scores, 2, 4))
    both = pack_24(weight, "cslt_sm90", scores=scores.double(), transposed=True)
    assert torch.equal(mask_24(both), nm_mask_2d(scores))
    assert torch.equal(unpack_24(both), weight.where(nm_mask_2d(scores), 0))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("transposed", [False, True])
def test_values_anew_leave_the_metadata(layout, transposed):
    weight, other = torch.randn(68, 132), torch.randn(68, 132)
    matrix = pack_24(weight, layout, transposed=transposed, dtype=torch.bfloat16)
    before = matrix.packed.clone()
    repack_24(matrix, other)
    want = pack_24(other, layout, mask=mask_24(matrix), transposed=transposed, dtype=torch.bfloat16)
    size = packed_size(68, 132, layout, 2)[0]
    assert torch.equal(bits(matrix.packed), bits(want.packed))
    assert torch.equal(bits(matrix.packed_t), bits(want.packed_t))
    assert torch.equal(bits(matrix.packed[size:]), bits(before[size:]))
    with pytest.raises(ValueError, match=r"weight: want \[68, 132\] as packed, got \[132, 68\]"):
        repack_24(matrix, other.t())


def test_what_is_not_24_is_refused_with_count_and_place():
    mask = torch.zeros(8, 16, dtype=torch.bool)
    mask[3, 8:11] = mask[6] = True
    with pytest.raises(
        ValueError,
        match="mask: want at most 2 of every 4 kept, got 5 groups with more, the first in row 3, columns 8 to 11",
    ):
        pack_24(torch.randn(8, 16), "bitmask", mask=mask)
    mask = nm_mask(torch.ones(8, 16), 2, 4)
    pack_24(torch.randn(8, 16), "bitmask", mask=mask)
    with pytest.raises(ValueError, match="got 16 groups with more, the first in column 0, rows 0 to 3"):
        pack_24(torch.randn(8, 16), "bitmask", mask=mask, transposed=True)


def test_mistakes():
    weight = torch.randn(6, 16)
    with pytest.raises(ValueError, match="layout: want bitmask, cutlass_sm80, cslt_sm80, cslt_sm90, got 'sm90'"):
        pack_24(weight, "sm90")
    with pytest.raises(ValueError, match=r"weight: want \[rows, cols\], cols a multiple of 4, got \[6, 15\]"):
        pack_24(weight[:, :15], "bitmask")
    with pytest.raises(ValueError, match=r"weight: want \[rows, cols\], both multiples of 4, got \[6, 16\]"):
        pack_24(weight, "bitmask", transposed=True)
    with pytest.raises(ValueError, match=r"mask: want \[6, 16\], got \[6, 12\]"):
        pack_24(weight, "bitmask", mask=torch.ones(6, 12).bool())
    with pytest.raises(ValueError, match="scores, mask: want one of them, got 2"):
        pack_24(weight, "bitmask", mask=weight > 0, scores=weight)
    with pytest.raises(TypeError, match="mask: want torch.bool, got torch.float32"):
        pack_24(weight, "bitmask", mask=torch.zeros(6, 16))
    with pytest.raises(TypeError, match="weight: want torch.float32, .*, got torch.int64"):
        pack_24(weight.long(), "bitmask")
    with pytest.raises(ValueError, match=r"patterns: want \[2, 4\], got \[16, 16\]; take a matrix from pack_24"):
        mask_24(pack_24(weight, "bitmask")._replace(patterns=torch.zeros(16, 16, dtype=torch.int16)))
    with pytest.raises(ValueError, match=r"patterns: want \[2, 4\], got \[0\]"):
        repack_24(pack_24(weight, "bitmask")._replace(patterns=torch.zeros(0, dtype=torch.int16)), weight)
    assert "library" in MULTIPLE  # but only where there is one
    with pytest.raises(ValueError, match="got 'library'"):
        pack_24(weight, "library")

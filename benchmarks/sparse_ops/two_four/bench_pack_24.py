"""pack_24 and repack_24 on one weight. Bytes a weight: the weight read, values and metadata written, patterns too.

The rivals: the libraries' own compression, of W alone and with a transposed copy for the other direction, and
torch's tile operator, which packs both ways, greedily, and always in Ampere's layouts.
"""

import pytest
import torch

from trisparse.kernels.layouts_24 import packed_size
from trisparse.sparse_ops import layout_24, mask_24, nm_mask, nm_mask_2d, pack_24, repack_24, unpack_24
from trisparse.sparse_ops.two_four.libraries_24 import library_for
from trisparse.sparse_ops.two_four.pack_24 import pack_24_reference

SHAPES = {"bert-mini": (1024, 256), "bert-base": (3072, 768), "bert-large": (4096, 1024), "llama-7b": (11008, 4096)}
PACKED, PATTERNS = 9 / 16, 1 / 16  # of the dense bytes in 16 bits


def packable(device):
    if layout_24(device) == "library":
        pytest.skip("the library packs by itself here")
    return layout_24(device)


@pytest.fixture
def weight(name, device, is_small):
    if is_small and name != "bert-mini":
        pytest.skip("only the smallest")
    dtype = torch.bfloat16
    return torch.randn(SHAPES[name], device=device).to(dtype)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
def test_pack_24(compare, device, weight, name, both):
    layout, library = packable(device), library_for(device)
    weight[weight == 0] = 1  # a zero that is kept is stored by us where it was chosen, by the library where it likes
    dense = weight.where(nm_mask(weight, 2, 4, magnitude=True), 0)

    def ours():
        return pack_24(weight, layout, transposed=both)

    def check():
        want = pack_24_reference(weight, None, "magnitude", both, layout, weight.dtype)
        assert all(torch.equal(a.view(torch.int16), b.view(torch.int16)) for a, b in zip(ours()[:3], want, strict=True))
        if library is not None:
            assert torch.equal(library.compress(unpack_24(ours())).view(torch.int16), want[0].view(torch.int16))

    rivals = {}
    if library is not None and not both:
        rivals[f"{library.name}, already 2:4"] = lambda: library.compress(dense)
    if library is not None and both:
        rivals[f"{library.name}, W and copy of W^T"] = lambda: (
            library.compress(dense), library.compress(dense.t().contiguous()),
        )  # fmt: skip
        for cutlass in (True, False):
            rivals[f"torch tile operator, {'CUTLASS' if cutlass else 'cuSPARSELt'}"] = lambda cutlass=cutlass: (
                torch._sparse_semi_structured_tile(weight, "largest_abs_values_greedy", cutlass)
            )
    nbytes = weight.numel() * 2 * (1 + PACKED * (1 + both) + PATTERNS)
    compare("pack_24", f"{name} {'both ways' if both else 'one way'}", ours, rivals, nbytes, check)


@pytest.mark.parametrize("name", SHAPES)
def test_repack_24(compare, device, weight, name):
    layout, library = packable(device), library_for(device)
    matrix = pack_24(weight, layout, transposed=True)
    mask = mask_24(matrix)
    dense = weight.where(mask, 0)

    def check():
        repack_24(matrix, weight)
        assert torch.equal(unpack_24(matrix), dense)

    rivals = {}
    if library is not None:
        rivals[f"mask, {library.name}, W and copy of W^T"] = lambda: (
            library.compress(weight * mask), library.compress((weight * mask).t().contiguous()),
        )  # fmt: skip
    nbytes = weight.numel() * 2 * (1 + 2 * 0.5 + PATTERNS)
    compare("repack_24", name, lambda: repack_24(matrix, weight), rivals, nbytes, check)


def test_layouts_here(rows, device):
    """Which layout this machine's library reads, and which torch's tile operator writes."""
    row = {"op": "layout_24", "model": str(device), "what": "library", "layout": layout_24(device)}
    rows(row)
    print(row)
    if device.type != "cuda":
        return
    weight = torch.randn(256, 256, device=device).half()
    kept = nm_mask_2d(weight)
    weight = weight.where(kept, 0)  # so that the greedy choice is the best one
    packed, *_ = torch._sparse_semi_structured_tile(weight, "largest_abs_values_greedy", False)
    blob = torch.empty(0, dtype=torch.int16, device=device).set_(packed.untyped_storage())  # values, then metadata
    values, size = packed_size(256, 256, "cslt_sm90", 2)
    found = [
        layout
        for layout in ("cslt_sm80", "cslt_sm90")
        if torch.equal(pack_24(weight, layout, mask=kept).packed.view(torch.int16)[values:], blob[values:size])
    ]
    row = {"op": "layout_24", "model": str(device), "what": "torch tile operator", "layout": found or "neither"}
    rows(row)
    print(row)

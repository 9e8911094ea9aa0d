"""Which layout of 2:4 metadata the library on this machine reads, found by trying."""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from trisparse.sparse_ops.choosing.nm_mask import nm_mask
from trisparse.sparse_ops.two_four.libraries_24 import Library24, library_for
from trisparse.sparse_ops.two_four.packed_24 import pack_reference

SIZE = 256  # of the matrix tried: twice the largest tile of any layout, both ways
_TOKENS = 64


def layout_24(device: torch.device | str = "cuda") -> str:
    """The layout to pack in for a device; tried once in a process, before any CUDA graph is captured.

    A small matrix goes through the library's own compression; the layout that gives the same bits, and with which
    its product is right, is the one. Where none does, `library`: then the library itself compresses, which is
    correct and slower, and one warning says so. Where there is no such library, or it fails, `bitmask`.
    """
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return _layout(device)


@functools.cache
def _layout(device: torch.device) -> str:
    library = library_for(device)
    if library is None:
        return "bitmask"
    with torch.cuda.device(device):
        return find_layout(library, device)


def find_layout(library: Library24, device: torch.device) -> str:
    """Try a library; see `layout_24`."""
    generator = torch.Generator().manual_seed(24)
    dense = torch.randn(SIZE, SIZE, generator=generator).to(device, torch.float16)
    mask = nm_mask(dense, 2, 4, magnitude=True)
    dense = dense.where(mask, 0)
    x = torch.randn(_TOKENS, SIZE, generator=generator).to(device, torch.float16)
    try:
        want = library.compress(dense)
        trouble = "" if _is_product(library.multiply(x, want, None, SIZE), x, dense) else "its products are wrong"
    except RuntimeError as error:
        trouble = str(error).splitlines()[0]
    if trouble:
        warnings.warn(f"{library.name} on {device}: {trouble}; 2:4 goes without it, slower", stacklevel=2)
        return "bitmask"
    for layout in library.layouts:
        ours = pack_reference(dense, mask, layout)
        if ours.shape == want.shape and torch.equal(ours.view(torch.int16), want.view(torch.int16)):
            return layout
    warnings.warn(
        f"{library.name} on {device} writes 2:4 metadata in an order that is not known here; "
        "it compresses by itself, which is correct but slower",
        stacklevel=2,
    )
    return "library"


def _is_product(y: Tensor, x: Tensor, dense: Tensor) -> bool:
    return bool(torch.allclose(y.double(), x.double() @ dense.double().t(), rtol=1e-2, atol=5e-2))

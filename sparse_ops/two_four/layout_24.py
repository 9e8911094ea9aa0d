"""Which layout of 2:4 metadata the library on this machine reads, found by trying."""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from trisparse.kernels.layouts_24 import packed_size, padded
from trisparse.sparse_ops.choosing.nm_mask import nm_mask
from trisparse.sparse_ops.two_four.libraries_24 import Library24, library_for
from trisparse.sparse_ops.two_four.packed_24 import pack_reference

SIZE = 256  # of the matrix tried: twice the largest tile of any layout, both ways
_TOKENS = 64
_SHAPES = (SIZE, SIZE), (64, 64), (192, 320), (832, 64)  # whose sizes are compared: odd multiples of 64 too


def layout_24(device: torch.device | str = "cuda") -> str:
    """The layout to pack in for a device; tried once in a process, before any CUDA graph is captured.

    A small matrix goes through the library's own compression; the layout that gives the same bits, with which its
    product is right and whose sizes are the library's, is the one. Where none is, `library`: then the library itself
    compresses, which is correct and slower, and one warning says so. Where there is no such library, or it fails or
    stores another number of bytes whatever the layout, `bitmask`.
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
    dense = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float32, device="cpu").to(device, torch.float16)
    mask = nm_mask(dense, 2, 4, magnitude=True)
    dense = dense.where(mask, 0)
    x = torch.randn(_TOKENS, SIZE, generator=generator, dtype=torch.float32, device="cpu").to(device, torch.float16)
    try:
        want = library.compress(dense)
        is_right = _is_product(library.multiply(x, want, None, SIZE), x, dense)
        trouble = _other_size(library, "library", device) if is_right else "its products are wrong"
    except RuntimeError as error:
        trouble = str(error).splitlines()[0]
    if trouble:
        warnings.warn(f"{library.name} on {device}: {trouble}; 2:4 goes without it, slower", stacklevel=2)
        return "bitmask"
    troubles = []
    for layout in library.layouts:
        trouble = _other_size(library, layout, device) or _other_bits(want, pack_reference(dense, mask, layout))
        if not trouble:
            return layout
        troubles.append(f"not {layout}, {trouble}")
    warnings.warn(
        f"{library.name} on {device} writes 2:4 metadata in an order that is not known here ({'; '.join(troubles)}); "
        "it compresses by itself, which is correct but slower",
        stacklevel=2,
    )
    return "library"


def _other_size(library: Library24, layout: str, device: torch.device) -> str:
    """The first shape for which a library wants another number of bytes than a layout has: it would read past them."""
    for shape in _SHAPES:
        rows, cols = padded(*shape, layout)
        zeros = torch.zeros(rows, cols, dtype=torch.float16, device=device)
        found, ours = library.compress(zeros).nbytes, packed_size(rows, cols, layout, 2)[1] * 2
        if found != ours:
            return f"a packed {rows} x {cols} has {found} bytes, want {ours}"
    return ""


def _other_bits(want: Tensor, ours: Tensor) -> str:
    """How many of the library's bytes are not ours."""
    count = int((want.view(torch.uint8) != ours.view(torch.uint8)).sum())
    return f"{count} of {ours.nbytes} bytes differ" if count else ""


def _is_product(y: Tensor, x: Tensor, dense: Tensor) -> bool:
    return bool(torch.allclose(y.double(), x.double() @ dense.double().t(), rtol=1e-2, atol=5e-2))

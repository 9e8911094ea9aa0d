"""Pack a matrix as 2:4, alone or with its transpose."""

from __future__ import annotations

import torch
from torch import Tensor

from trisparse.kernels.layouts_24 import MULTIPLE, packed_size
from trisparse.sparse_ops.checks import check_device, check_dtype
from trisparse.sparse_ops.choosing.nm_mask import nm_mask
from trisparse.sparse_ops.choosing.nm_mask_2d import nm_mask_2d
from trisparse.sparse_ops.library import define
from trisparse.sparse_ops.two_four.libraries_24 import compress
from trisparse.sparse_ops.two_four.packed_24 import Packed24, mask_of, pack_reference, patterns_of


def _chosen(weight, chooser, select, transposed) -> Tensor:
    """bool, what is kept."""
    if select == "patterns":
        return mask_of(chooser, *weight.shape)
    if select == "mask":
        return chooser
    scores = weight if chooser is None else chooser
    return nm_mask_2d(scores) if transposed else nm_mask(scores, 2, 4, magnitude=select == "magnitude")


def pack_24_reference(weight, chooser, select, transposed, layout, dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Plain torch; see `pack_24`."""
    mask, weight = _chosen(weight, chooser, select, transposed), weight.to(dtype)
    packed = pack_reference(weight, mask, layout)
    packed_t = pack_reference(weight.t(), mask.t(), layout) if transposed else packed.new_empty(0)
    return packed, packed_t, _patterns(mask, chooser, select)


def _patterns(mask, chooser, select) -> Tensor:
    """The patterns chosen; none when they were given, since an output must not be an input."""
    return chooser.new_empty(0, 0) if select == "patterns" else patterns_of(mask)


def _kernel(weight, chooser, select, transposed, layout, dtype) -> tuple[Tensor, Tensor, Tensor]:
    if layout == "library":
        mask = _chosen(weight, chooser, select, transposed)
        packed, packed_t = compress(weight.to(dtype).where(mask, 0), layout, transposed)
        return packed, packed_t, _patterns(mask, chooser, select)
    from trisparse.kernels.gpu.pack_24 import pack_24

    return pack_24(weight, chooser, select, transposed, layout, dtype)


def _fake(weight, chooser, select, transposed, layout, dtype) -> tuple[Tensor, Tensor, Tensor]:
    rows, cols = weight.shape
    _, size = packed_size(rows, cols, layout, dtype.itemsize)
    packed = weight.new_empty(size, dtype=dtype)
    packed_t = weight.new_empty(size if transposed else 0, dtype=dtype)
    shape = (0, 0) if select == "patterns" else ((rows + 3) // 4, cols // 4)
    return packed, packed_t, weight.new_empty(shape, dtype=torch.int16)


define(
    "pack_24(Tensor weight, Tensor? chooser, str select, bool transposed, str layout, ScalarType dtype)"
    " -> (Tensor, Tensor, Tensor)",
    pack_24_reference, _kernel, _fake,
)  # fmt: skip


def pack_24(
    weight: Tensor, layout: str, *, scores: Tensor | None = None, mask: Tensor | None = None,
    patterns: Tensor | None = None, transposed: bool = False, dtype: torch.dtype | None = None,
) -> Packed24:  # fmt: skip
    """Pack the weights kept of a matrix: two of four in every row and, with `transposed`, in every column.

    Without scores or a mask the two largest magnitudes of each group of four are kept, a tie going to the lower
    place and NaN counting as the largest; with `transposed`, in each 4 x 4 tile the pattern of the most magnitude
    (`nm_mask_2d`). A zero that is kept is stored like any value, with its sign. Rows and columns are padded to
    multiples of `layouts_24.MULTIPLE[layout]`; nothing is kept of the padding.
    Sources: arXiv 2104.08378; transposable masks, arXiv 2102.08124.

    Args:
        weight: `[rows, cols]`, cols a multiple of 4, with `transposed` rows too.
        layout: `cutlass_sm80`, `cslt_sm80`, `cslt_sm90` or `bitmask`; `layout_24` names this machine's.
        scores: choose by these, highest kept, instead of magnitude; with `transposed` by their magnitude.
        mask: bool, keep these, at most two of four. Checking that waits for the device.
        patterns: keep what these of another `Packed24` keep; not checked.
        transposed: pack the transpose too, in the same pass; what is kept is 2:4 both ways.
        dtype: of the values, the weight's own unless given; on a GPU float16 or bfloat16.

    Raises:
        ValueError: a shape or layout that does not fit, two ways to choose, or a mask that is not 2:4, with
            the number of bad groups and the place of the first.
        TypeError: a dtype that does not.
    """
    dtype = dtype or weight.dtype
    _check(weight, layout, dtype, transposed)
    choosers = {"scores": scores, "mask": mask, "patterns": patterns}
    given = [name for name, chooser in choosers.items() if chooser is not None]
    if len(given) > 1:
        raise ValueError(f"{', '.join(given)}: want one of them, got {len(given)}")
    for name in given:
        chooser = choosers[name]
        assert chooser is not None
        check_device(weight=weight, **{name: chooser})
        want = [-(-weight.shape[0] // 4), weight.shape[1] // 4] if name == "patterns" else list(weight.shape)
        if list(chooser.shape) != want:
            raise ValueError(f"{name}: want {want}, got {list(chooser.shape)}")
    if scores is not None:
        check_dtype("scores", scores)
        choosers["scores"] = scores.detach().float() if scores.dtype == torch.float64 else scores.detach()
    if mask is not None:
        check_mask(mask, transposed)
    select = given[0] if given else "magnitude"
    parts = torch.ops.trisparse.pack_24(weight.detach(), choosers.get(select), select, transposed, layout, dtype)
    return Packed24(
        parts[0], parts[1], parts[2] if patterns is None else patterns, weight.shape[0], weight.shape[1], layout
    )


def check_mask(mask: Tensor, transposed: bool, name: str = "mask") -> None:
    """Raise ValueError unless at most two of four are kept, in rows and, with `transposed`, in columns."""
    if mask.dtype != torch.bool:
        raise TypeError(f"{name}: want torch.bool, got {mask.dtype}")
    if mask.is_meta:
        return
    for view, along in ((mask, "row"), (mask.t(), "column"))[: 1 + transposed]:
        bad = view.unflatten(1, (view.shape[1] // 4, 4)).sum(-1) > 2
        count = int(bad.sum())
        if count:
            line, group = bad.nonzero()[0].tolist()
            across = "columns" if along == "row" else "rows"
            raise ValueError(
                f"{name}: want at most 2 of every 4 kept, got {count} groups with more, "
                f"the first in {along} {line}, {across} {group * 4} to {group * 4 + 3}"
            )


def check_layout(layout: str, device: torch.device) -> None:
    """Raise ValueError for a layout that there is not, or not on this device."""
    known = [name for name in MULTIPLE if name != "library" or device.type == "cuda"]
    if layout not in known:
        raise ValueError(f"layout: want {', '.join(known)}, got {layout!r}")


def _check(weight: Tensor, layout: str, dtype: torch.dtype, transposed: bool) -> None:
    check_layout(layout, weight.device)
    check_dtype("weight", weight)
    if weight.dim() != 2 or weight.shape[1] % 4 or (transposed and weight.shape[0] % 4):
        want = "both multiples of 4" if transposed else "cols a multiple of 4"
        raise ValueError(f"weight: want [rows, cols], {want}, got {list(weight.shape)}")
    if weight.is_cuda:
        check_half(dtype)


def check_half(dtype: torch.dtype) -> None:
    """Raise TypeError unless a GPU can multiply packed values of this dtype."""
    if dtype not in (torch.float16, torch.bfloat16):
        raise TypeError(f"dtype: want torch.float16 or torch.bfloat16 on a GPU, got {dtype}")

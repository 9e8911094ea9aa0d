"""What lies under a convolution's kernel at each position, laid out for a product with its weight (im2col)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_PIECE = 1 << 17  # numbers that are laid out at a time on a CPU, so that its caches hold them until they are multiplied


class Geometry(NamedTuple):
    """How a convolution without groups moves over `[batch, channels, *sizes]`; fields as `nn.Conv2d` has them.

    Attributes:
        kernel_size: one number for each of `sizes`, as all below.
        stride: between positions.
        padding: zeros on either side, or `same` or `valid`.
        dilation: between places under the kernel.
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]

    @property
    def spans(self) -> list[int]:
        """How many places the kernel reaches over."""
        return [d * (k - 1) + 1 for k, d in zip(self.kernel_size, self.dilation, strict=True)]

    @property
    def margins(self) -> list[tuple[int, int]]:
        """Zeros before and after."""
        if self.padding == "same":
            return [((span - 1) // 2, span // 2) for span in self.spans]
        padding = [0] * len(self.stride) if isinstance(self.padding, str) else self.padding
        return [(number, number) for number in padding]

    def windows(self, x: Tensor) -> Tensor:
        """`[batch, channels, *sizes]` as `[batch, *positions, *kernel, channels]`: a view of it, or of it padded."""
        x = x.movedim(1, -1)
        if any(map(any, self.margins)):
            x = nn.functional.pad(x, [0, 0, *(number for pair in reversed(self.margins) for number in pair)])
        for dim, (span, stride, dilation) in enumerate(zip(self.spans, self.stride, self.dilation, strict=True), 1):
            x = x.unfold(dim, span, stride)[..., ::dilation]
        return x.movedim(len(self.stride) + 1, -1)

    def positions(self, sizes: Sequence[int]) -> int:
        """How many there are in an input of these sizes."""
        reach = zip(sizes, self.margins, self.spans, self.stride, strict=True)
        return math.prod((size + sum(margin) - span) // stride + 1 for size, margin, span, stride in reach)

    def sizes_for(self, positions: int) -> list[int]:
        """The sizes of an input with so many positions, or the next smaller number that makes a square or a cube."""
        side = max(int(positions ** (1 / len(self.stride)) + 1e-9), 1)
        reach = zip(self.spans, self.stride, self.margins, strict=True)
        return [max((side - 1) * stride + span - sum(margin), 1) for span, stride, margin in reach]


def geometry_of(conv: Any) -> Geometry:
    """How this `nn.Conv1d`, `Conv2d` or `Conv3d` moves."""
    return Geometry(conv.kernel_size, conv.stride, conv.padding, conv.dilation)


def pieces(windows: Tensor, dims: int) -> Iterator[Tensor]:
    """Windows of `dims` sizes as `[positions, kernel * channels]`; on a CPU a few at a time, in their order."""
    wide = math.prod(windows.shape[dims + 1 :])
    if windows.device.type != "cpu" or windows.is_contiguous() or torch.compiler.is_compiling() or not len(windows):
        yield windows.reshape(-1, wide)
        return
    rows = max(_PIECE // max(wide * math.prod(windows.shape[2 : dims + 1]), 1), 1)
    for images in windows.split(max(rows // windows.shape[1], 1)):
        for piece in images.split(rows, 1):
            yield piece.reshape(-1, wide)

"""Convolutions whose weight is packed, for inference."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from trisparse.sparse_ops.blocks.linear_blocks import LinearBlocks
from trisparse.sparse_ops.convolutions.windows import Geometry, geometry_of, pieces
from trisparse.sparse_ops.lazy_weight import lazy_weight
from trisparse.sparse_ops.packed_modules import DirectModule
from trisparse.sparse_ops.two_four.linear_24 import Linear24

_CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}  # torch has none for one size


def as_matrix(weight: Tensor) -> Tensor:
    """The weight of a convolution `[out, in, *kernel]` as `[out, kernel * in]`, channels the fastest."""
    return weight.movedim(1, -1).flatten(1)


def is_channels_last(tensor: Tensor) -> bool:
    """Whether torch takes channels to be the fastest in memory; by strides, which tell where sizes are one.

    Where all sizes but the first are one, nothing tells, and torch takes channels to come first.
    """
    last: Any = _LAST.get(tensor.dim() - 2)
    is_last = last is not None and math.prod(tensor.shape[1:]) != 1 and tensor.is_contiguous(memory_format=last)
    return is_last and tensor.stride(1) == 1 and tensor.stride(-1) == tensor.shape[1]


def linear_of(conv: Any) -> nn.Linear:
    """The layer that a convolution applies at each position.

    Raises:
        ValueError: it has groups, or pads with anything but zeros.
    """
    if conv.groups != 1 or conv.padding_mode != "zeros":
        raise ValueError(f"conv: want groups=1 and padding_mode='zeros', got {conv.groups} and {conv.padding_mode!r}")
    matrix = as_matrix(conv.weight.detach()).contiguous()
    linear = nn.Linear(matrix.shape[1], matrix.shape[0], conv.bias is not None, "meta", matrix.dtype)
    linear.weight = nn.Parameter(matrix)
    linear.register_parameter("bias", conv.bias)
    return linear.train(conv.training)


class _PackedConv(DirectModule):
    """What makes a convolution of the packed linear layer that stands behind it among a class's bases."""

    in_features: int
    out_features: int
    bias: Any
    to_linear: Any
    geometry: Geometry
    channels_last: bool

    groups, padding_mode = 1, "zeros"

    @classmethod
    def from_conv(cls, conv: Any, *args: Any, **kwargs: Any) -> Any:
        """Pack an `nn.Conv1d`, `Conv2d` or `Conv3d`; what else there is, `from_linear` takes.

        Raises:
            ValueError: it has groups, or pads with anything but zeros; or as `from_linear`.
            TypeError: as `from_linear`.
        """
        layer: Any = cls
        packed = layer.from_linear(linear_of(conv), *args, **kwargs)
        return packed.moving(geometry_of(conv), is_channels_last(conv.weight))

    def moving(self, geometry: Geometry, channels_last: bool) -> Any:
        """The layer itself, which from now on moves so; `channels_last` says how a dense weight would lie in memory."""
        self.geometry, self.channels_last = geometry, channels_last
        return self

    def to_conv(self) -> nn.Module:
        """The same layer, dense, without an activation."""
        linear, dims = self.to_linear(), len(self.kernel_size)
        conv = _CONVS[dims](self.in_channels, self.out_channels, *self.geometry, bias=False, device="meta")
        conv.weight = nn.Parameter(self._kernels(linear.weight.detach()))
        conv.register_parameter("bias", linear.bias)
        return conv.train(self.training)

    @property
    def weight(self) -> Tensor:
        """The dense weight `[out, in, *kernel]` for code that reads it, unpacked once asked for; not to write to."""
        matrix: Any = super().weight  # type: ignore[misc]
        if matrix.requires_grad:  # unpacked already, for gradients to go through
            return self._kernels(matrix)
        like = self._kernels(torch.empty(matrix.shape, dtype=matrix.dtype, device="meta"))
        return lazy_weight(lambda: self._kernels(matrix.clone()), like, matrix.device)

    in_channels = property(lambda self: self.in_features // math.prod(self.kernel_size))
    out_channels = property(lambda self: self.out_features)
    kernel_size = property(lambda self: self.geometry.kernel_size)
    stride = property(lambda self: self.geometry.stride)
    padding = property(lambda self: self.geometry.padding)
    dilation = property(lambda self: self.geometry.dilation)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, in, *sizes]` or `[in, *sizes]` to the same with `out`, in memory laid out as by a dense one."""
        dims = len(self.kernel_size)
        if x.dim() == dims + 1:
            return self.forward(x[None])[0]
        if x.dim() != dims + 2 or x.shape[1] != self.in_channels:
            sizes = ", ".join(["size"] * dims)
            raise ValueError(f"x: want [batch, {self.in_channels}, {sizes}], batch or not, got {list(x.shape)}")
        product: Any = super().forward
        windows = self.geometry.windows(x)
        parts = [product(part) for part in pieces(windows, dims)]
        y = torch.cat(parts) if len(parts) > 1 else parts[0]
        y = y.view(*windows.shape[: dims + 1], self.out_features).movedim(-1, 1)
        is_last = self.channels_last or is_channels_last(x)
        return y if is_last else y.clone(memory_format=torch.contiguous_format)

    def extra_repr(self) -> str:
        how = ", ".join(f"{name}={value}" for name, value in self.geometry._asdict().items())
        return f"{super().extra_repr()}, {how}"

    def _kernels(self, matrix: Tensor) -> Tensor:
        """`[out, kernel * in]` as a convolution's weight."""
        kernels = matrix.view(len(matrix), *self.kernel_size, self.in_channels).movedim(-1, 1)
        return kernels if self.channels_last else kernels.clone(memory_format=torch.contiguous_format)


class Conv24(_PackedConv, Linear24):
    """`nn.Conv1d`, `Conv2d` or `Conv3d` that keeps only its packed 2:4 weight; made by `from_conv`.

    Two of four channels that follow each other are kept, of one place under the kernel where there are four or more.
    """


class ConvBlocks(_PackedConv, LinearBlocks):
    """`nn.Conv1d`, `Conv2d` or `Conv3d` that keeps only the blocks of its weight that are not all zero.

    Made by `from_conv`. Blocks lie in `[out, kernel * in]`, channels the fastest.
    """

"""What products with packed blocks share: reference, gradients, checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, relu

from trisparse.sparse_ops.blocks.packed_blocks import PackedBlocks, places, unpack_blocks
from trisparse.sparse_ops.choosing.units import check_device
from trisparse.sparse_ops.library import define, differentiable

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": relu,
    "gelu": gelu,
    "gelu_tanh": lambda y: gelu(y, approximate="tanh"),
}
MATRIX = (
    "Tensor values, Tensor columns, Tensor pointers, Tensor order, Tensor slots_t, Tensor groups_t,"
    " Tensor pointers_t, int rows, int cols, int run, int longest"
)
_PARTS = len(PackedBlocks._fields)


def product_reference(x, *rest) -> Tensor:
    """Plain torch: unpack, then multiply densely; see `vector_spmm`."""
    matrix, (bias, activation) = PackedBlocks(*rest[:_PARTS]), rest[_PARTS:]
    with torch.autocast(x.device.type, enabled=False):  # the result has the dtype of x
        return ACTIVATIONS[activation](linear(x, unpack_blocks(matrix), bias))


def spmm_t_reference(grad, *matrix) -> Tensor:
    """Plain torch; the gradient of a product's input, `grad @ W`."""
    return grad @ unpack_blocks(PackedBlocks(*matrix))


def sddmm_reference(grad, x, *matrix) -> Tensor:
    """Plain torch; `grad.T @ x` where values are stored, zero where a slot only fills up."""
    packed = PackedBlocks(*matrix)
    row, column = places(packed)
    inside = (row < packed.rows) & (column < packed.cols)
    full = grad.t() @ x
    return full[row.clamp(max=packed.rows - 1), column.clamp(max=packed.cols - 1)].where(inside, 0)


def _spmm_t_kernel(grad, *rest) -> Tensor:
    from trisparse.kernels.gpu.spmm_t import spmm_t

    matrix = PackedBlocks(*rest)
    return spmm_t(grad, matrix) if matrix.rows else spmm_t_reference(grad, *rest)


def _sddmm_kernel(grad, x, *matrix) -> Tensor:
    from trisparse.kernels.gpu.sddmm import sddmm

    return sddmm(grad, x, PackedBlocks(*matrix))


define(
    f"spmm_t(Tensor grad, {MATRIX}) -> Tensor",
    spmm_t_reference, _spmm_t_kernel, lambda grad, *matrix: grad.new_empty(grad.shape[0], matrix[8]),
)  # fmt: skip
define(
    f"sddmm(Tensor grad, Tensor x, {MATRIX}) -> Tensor",
    sddmm_reference, _sddmm_kernel, lambda grad, x, values, *matrix: torch.empty_like(values),
)  # fmt: skip


def _save(ctx, inputs, output) -> None:
    x, values, *rest = inputs
    ctx.numbers = rest[6:10]
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, values, *rest[:6])


def _backward(ctx, grad):
    if torch.is_grad_enabled() and grad.requires_grad:
        raise RuntimeError("spmm: has no second derivative; call backward without create_graph")
    x, *tensors = ctx.saved_tensors
    matrix = PackedBlocks(*tensors, *ctx.numbers)
    ops, grad = torch.ops.trisparse, grad.contiguous()
    grad_x = grad_values = grad_bias = None
    if ctx.needs_input_grad[0]:
        indexed = matrix.pointers_t.numel() > 0
        grad_x = ops.spmm_t(grad, *matrix) if indexed else grad @ unpack_blocks(matrix)
    if ctx.needs_input_grad[1]:
        grad_values = ops.sddmm(grad, x, *matrix)
    if ctx.needs_input_grad[_PARTS + 1]:
        grad_bias = grad.sum(0)
    return grad_x, grad_values, *[None] * (_PARTS - 1), grad_bias, None


def define_product(name: str, kernel: Callable[..., Tensor]) -> None:
    """Register `name(x, matrix, bias, activation)` with its gradients; `kernel` takes a `PackedBlocks`."""

    def run(x, *rest) -> Tensor:
        matrix, (bias, activation) = PackedBlocks(*rest[:_PARTS]), rest[_PARTS:]
        if not matrix.cols:
            return product_reference(x, *rest)
        return kernel(x, matrix, None if bias is None else bias.contiguous(), activation)

    schema = f"{name}(Tensor x, {MATRIX}, Tensor? bias, str activation) -> Tensor"
    define(schema, product_reference, run, lambda x, *rest: x.new_empty(x.shape[0], rest[7]))
    differentiable(name, _backward, _save)


def multiply(
    op: Callable[..., Tensor], x: Tensor, matrix: PackedBlocks, bias: Tensor | None, activation: str
) -> Tensor:
    """Check, run the operator on two dimensions, and apply the activation outside it where it needs a gradient."""
    _check(x, matrix, bias, activation)
    leaves: Sequence[Any] = (x, matrix.values, bias)
    trains = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in leaves)
    flat = x.reshape(math.prod(x.shape[:-1]), matrix.cols)
    y = op(flat, *matrix, bias, "none" if trains else activation).view(*x.shape[:-1], matrix.rows)
    return ACTIVATIONS[activation](y) if trains else y


def _check(x: Tensor, matrix: PackedBlocks, bias: Tensor | None, activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: want {', '.join(ACTIVATIONS)}, got {activation!r}")
    rows, cols = matrix.rows, matrix.cols
    if x.shape[-1:] != (cols,):
        raise ValueError(f"x: want [..., {cols}] for a matrix [{rows}, {cols}], got {list(x.shape)}")
    if bias is not None and bias.shape != (rows,):
        raise ValueError(f"bias: want [{rows}] for a matrix [{rows}, {cols}], got {list(bias.shape)}")
    for name, tensor in (("x", x), ("bias", bias)):
        if tensor is not None and tensor.dtype != matrix.values.dtype:
            raise TypeError(f"{name}: want {matrix.values.dtype} like the values, got {tensor.dtype}")
    check_device(
        x=x, **dict(zip(matrix._fields[:7], matrix[:7], strict=True)), **({} if bias is None else {"bias": bias})
    )

"""What `vector_spmm` and `block_spmm` share: reference, gradients, checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from trisparse.sparse_ops.activations import ACTIVATIONS
from trisparse.sparse_ops.blocks.packed_blocks import LOWEST, SCHEMA, PackedBlocks, unpack_blocks
from trisparse.sparse_ops.blocks.sddmm import sddmm
from trisparse.sparse_ops.blocks.spmm_t import spmm_t, spmm_t_on_cpu, spmm_t_reference
from trisparse.sparse_ops.checks import check_device
from trisparse.sparse_ops.library import check_derivative, define, differentiable, is_seen, no_autocast

_PARTS = len(PackedBlocks._fields)


def product_reference(x, *rest) -> Tensor:
    """Plain torch: unpack, then multiply densely; see `vector_spmm`."""
    matrix, (bias, activation) = PackedBlocks(*rest[:_PARTS]), rest[_PARTS:]
    with no_autocast(x.device):  # the result has the dtype of x
        return ACTIVATIONS[activation](linear(x, unpack_blocks(matrix), bias))


def _save(ctx, inputs, output) -> None:
    x, values, *rest = inputs
    ctx.numbers = rest[6:10]
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, values, *rest[:6])


def _backward(ctx, grad):
    both = ctx.needs_input_grad[0] and ctx.needs_input_grad[1]  # the gradient of either is made of the other
    if torch.is_grad_enabled() and (grad.requires_grad or both):
        raise RuntimeError("spmm: has no second derivative; call backward without create_graph")
    x, *tensors = ctx.saved_tensors
    matrix = PackedBlocks(*tensors, *ctx.numbers)
    grad = grad.contiguous()
    grad_x = grad_values = grad_bias = None
    if ctx.needs_input_grad[0]:
        if matrix.pointers_t.numel():
            grad_x = spmm_t(grad, matrix)
        elif not is_seen(grad, matrix.values):
            grad_x = spmm_t_on_cpu(grad, *matrix)
        else:
            grad_x = spmm_t_reference(grad, *matrix)
    if ctx.needs_input_grad[1]:
        grad_values = sddmm(grad, x, matrix)
    if ctx.needs_input_grad[_PARTS + 1]:
        grad_bias = grad.sum(0)
    return grad_x, grad_values, *[None] * (_PARTS - 1), grad_bias, None


def define_product(name: str, kernel: Callable[..., Tensor]) -> None:
    """Register `name(x, matrix, bias, activation)` with its gradients; `kernel` takes a `PackedBlocks`."""

    def run(x, *rest) -> Tensor:
        matrix, (bias, activation) = PackedBlocks(*rest[:_PARTS]), rest[_PARTS:]
        if not matrix.cols or matrix.values.shape[1] < LOWEST:
            return product_reference(x, *rest)
        return kernel(x, matrix, None if bias is None else bias.contiguous(), activation)

    schema = f"{name}(Tensor x, {SCHEMA}, Tensor? bias, str activation) -> Tensor"
    define(schema, product_reference, run, lambda x, *rest: x.new_empty(x.shape[0], rest[7]), _on_cpu)
    differentiable(name, _backward, _save)


def _on_cpu(x, *rest) -> Tensor:
    from trisparse.kernels.cpu.spmm import spmm

    found = spmm(x, PackedBlocks(*rest[:_PARTS]), *rest[_PARTS:])
    return product_reference(x, *rest) if found is None else found


def multiply(
    op: Callable[..., Tensor], x: Tensor, matrix: PackedBlocks, bias: Tensor | None, activation: str
) -> Tensor:
    """Check, run the operator on two dimensions, and apply the activation outside it where it needs a gradient."""
    check_derivative("spmm")
    _check(x, matrix, bias, activation)
    leaves: Sequence[Any] = (x, matrix.values, bias)
    trains = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in leaves)
    flat = x.reshape(math.prod(x.shape[:-1]), matrix.cols)
    if trains:
        y = ACTIVATIONS[activation](op(flat, *matrix, bias, "none"))
    elif is_seen(x, matrix.values):
        y = op(flat, *matrix, bias, activation)
    else:
        y = _on_cpu(flat, *matrix, bias, activation)
    return y.view(*x.shape[:-1], matrix.rows)


def _check(x: Tensor, matrix: PackedBlocks, bias: Tensor | None, activation: str) -> None:
    others = matrix[:7] if bias is None else (*matrix[:7], bias)
    if (  # in one look, since this is asked for every product
        activation in ACTIVATIONS
        and x.shape[-1:] == (matrix.cols,)
        and x.dtype == matrix.values.dtype
        and (bias is None or (bias.shape == (matrix.rows,) and bias.dtype == x.dtype))
        and all(tensor.device == x.device for tensor in others)
    ):
        return
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

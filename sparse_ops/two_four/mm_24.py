"""Multiply with a packed 2:4 matrix, forward and backward."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import linear

from trisparse.kernels.layouts_24 import packed_size
from trisparse.sparse_ops.checks import check_device
from trisparse.sparse_ops.library import check_derivative, define, differentiable, is_seen, no_autocast
from trisparse.sparse_ops.two_four.libraries_24 import library_for, multiply
from trisparse.sparse_ops.two_four.packed_24 import Packed24

FEW_TOKENS = 64  # up to here a kernel of ours


def mm_24_reference(x, packed, packed_t, patterns, weight, bias, rows, cols, layout, masked) -> Tensor:
    """Plain torch; see `mm_24`."""
    with no_autocast(x.device):  # the result has the dtype of x
        return linear(x, torch.ops.trisparse.unpack_24(packed, rows, cols, layout), bias)


def _kernel(x, packed, packed_t, patterns, weight, bias, rows, cols, layout, masked) -> Tensor:
    if not cols:
        return mm_24_reference(x, packed, packed_t, patterns, weight, bias, rows, cols, layout, masked)
    library, bias = library_for(x.device), None if bias is None else bias.contiguous()
    if layout != "library" and x.shape[0] <= FEW_TOKENS:
        from trisparse.kernels.gpu.mm_24 import mm_24

        return mm_24(x, packed, bias, rows, cols, layout)
    if library is None or layout not in (*library.layouts, "library"):
        return mm_24_reference(x, packed, packed_t, patterns, weight, bias, rows, cols, layout, masked)
    return multiply(library, x, packed, bias, rows, cols, layout)


def _on_cpu(x, packed, packed_t, patterns, weight, bias, rows, cols, layout, masked) -> Tensor:
    from trisparse.kernels.cpu.mm_24 import mm_24

    found = mm_24(x, packed, bias, rows, cols, layout)
    if found is None:
        return mm_24_reference(x, packed, packed_t, patterns, weight, bias, rows, cols, layout, masked)
    return found


def _fake(x, packed, packed_t, patterns, weight, bias, rows, cols, layout, masked) -> Tensor:
    return x.new_empty(x.shape[0], rows)


def _save(ctx, inputs, output) -> None:
    x, packed, packed_t, patterns, _weight, _bias, *settings = inputs
    ctx.settings = settings
    ctx.both = packed_t.numel() > 0
    ctx.save_for_backward(x if ctx.needs_input_grad[4] else None, packed_t if ctx.both else packed, patterns)


def _backward(ctx, grad):
    both = ctx.needs_input_grad[0] and ctx.needs_input_grad[4]  # the gradient of either is made of the other
    if torch.is_grad_enabled() and (grad.requires_grad or both):
        raise RuntimeError("mm_24: has no second derivative; call backward without create_graph")
    x, packed, patterns = ctx.saved_tensors  # packed is the transpose, if there is one
    rows, cols, layout, masked = ctx.settings
    grad = grad.contiguous()
    ops = torch.ops.trisparse
    grad_x = grad_weight = grad_bias = None
    with no_autocast(grad.device):  # gradients have the dtypes of x and the weight
        if ctx.needs_input_grad[0]:
            if ctx.both:
                grad_x = ops.mm_24(grad, packed, packed[:0], patterns, None, None, cols, rows, layout, masked)
            else:
                grad_x = grad @ ops.unpack_24(packed, rows, cols, layout)
        if ctx.needs_input_grad[4]:
            grad_weight = grad.t() @ x
            if masked:
                grad_weight = grad_weight.where(ops.mask_24(patterns, rows, cols), 0)
    if ctx.needs_input_grad[5]:
        grad_bias = grad.sum(0)
    return grad_x, None, None, None, grad_weight, grad_bias, None, None, None, None


define(
    "mm_24(Tensor x, Tensor packed, Tensor packed_t, Tensor patterns, Tensor? weight, Tensor? bias,"
    " int rows, int cols, str layout, bool masked) -> Tensor",
    mm_24_reference, _kernel, _fake, _on_cpu,
)  # fmt: skip
differentiable("mm_24", _backward, _save)


def mm_24(
    x: Tensor, matrix: Packed24, bias: Tensor | None = None, weight: Tensor | None = None, masked: bool = True
) -> Tensor:
    """`x @ W.T + bias` with W packed as 2:4, on sparse tensor cores where there are some.

    On a GPU up to 16 tokens run a kernel that takes W to sparse tensor cores as it is stored (on AMD, and up to 64
    tokens, one that unpacks W in registers); more go to cuSPARSELt or CUTLASS, whichever reads the matrix's layout;
    where neither does, W is unpacked and multiplied densely. Nothing waits for the device. On a CPU the kernel is
    `kernels/cpu/mm_24.cpp`, for float32 and bfloat16 and bitmasks; otherwise W is unpacked. The gradient of x takes
    the packed transpose if there is one, else W unpacked.

    Args:
        x: `[..., cols]`, of the dtype of the packed values.
        matrix: as `pack_24` returned it; gets no gradient.
        bias: `[rows]`, of the same dtype.
        weight: `[rows, cols]` that the matrix was packed from. It is not read, it receives the gradient of W.
        masked: only what is kept gets a gradient; else all of `weight` does (straight-through, arXiv 2102.04010).

    Returns:
        `[..., rows]` of the dtype of x, accumulated in fp32 where there is a kernel.

    Raises:
        ValueError: a shape or device that does not fit.
        TypeError: a dtype that does not.
    """
    check_derivative("mm_24")
    packed, packed_t, patterns, rows, cols, layout = matrix
    named = {"x": (x, cols), "bias": (bias, rows)}
    for name, (tensor, size) in named.items():
        if tensor is None:
            continue
        if tensor.shape[-1:] != (size,) or (name == "bias" and tensor.dim() != 1):
            want = f"[..., {size}]" if name == "x" else f"[{size}]"
            raise ValueError(f"{name}: want {want} for a matrix [{rows}, {cols}], got {list(tensor.shape)}")
        if tensor.dtype != packed.dtype:
            raise TypeError(f"{name}: want {packed.dtype} like the packed values, got {tensor.dtype}")
    if weight is not None and tuple(weight.shape) != (rows, cols):
        raise ValueError(f"weight: want {[rows, cols]} as packed, got {list(weight.shape)}")
    check_device(x=x, **{k: t for k, t in (("packed", packed), ("bias", bias), ("weight", weight)) if t is not None})
    if layout != "library" and packed.numel() != packed_size(rows, cols, layout, packed.element_size())[1]:
        raise ValueError(f"matrix: {packed.numel()} packed numbers are not those of [{rows}, {cols}] in {layout}")
    flat = x.reshape(math.prod(x.shape[:-1]), cols)
    leaves = x, weight, bias
    trains = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in leaves)
    op = torch.ops.trisparse.mm_24 if trains or is_seen(x, packed) else _on_cpu
    y = op(flat, packed, packed_t, patterns, weight, bias, rows, cols, layout, masked)
    return y.view(*x.shape[:-1], rows)

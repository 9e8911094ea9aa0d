"""A linear layer that trains as ever, and multiplies only with what a mask keeps of its weight."""

from __future__ import annotations

import copyreg
import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from trisparse.sparse_ops.blocks.masked_blocks import MaskedBlocks, gather_values, scatter_values
from trisparse.sparse_ops.blocks.masked_channels import MaskedChannels, channel_linear
from trisparse.sparse_ops.blocks.packed_blocks import unpack_blocks
from trisparse.sparse_ops.blocks.sddmm import sddmm
from trisparse.sparse_ops.blocks.spmm_t import spmm_t
from trisparse.sparse_ops.blocks.vector_spmm import vector_spmm
from trisparse.sparse_ops.library import is_seen, no_autocast
from trisparse.sparse_ops.packed_modules import autocast_dtype

_OWN = ("kept", "tokens", "computed", "_masked")


class _Product(torch.autograd.Function):
    """`x @ W.T + bias` with what is kept of W; the gradient of W is dense, and zero elsewhere."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kept: MaskedBlocks, dtype: torch.dtype
    ) -> Tensor:
        flat = x.detach().reshape(math.prod(x.shape[:-1]), x.shape[-1]).to(dtype)
        matrix = gather_values(weight.detach().to(dtype), kept.matrix)
        ctx.kept, ctx.shape, ctx.dtypes = kept, x.shape, (x.dtype, weight.dtype)
        needs_x, needs_weight = ctx.needs_input_grad[:2]  # a gradient of either is made of the other
        ctx.save_for_backward(
            x if needs_weight else None, weight if needs_x else None, flat if needs_weight else None, matrix.values
        )
        y = vector_spmm(flat, matrix, None if bias is None else bias.detach().to(dtype))
        return y.view(*x.shape[:-1], matrix.rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        x, weight, flat, values = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        kept: MaskedBlocks = ctx.kept
        if torch.is_grad_enabled():  # somebody wants a second derivative
            return _dense_gradients(grad, x, weight, ctx)
        rows = grad.reshape(-1, grad.shape[-1]).to(values.dtype)
        matrix = kept.matrix._replace(values=values)
        grad_x = grad_weight = None
        if needs_x:
            if kept.transposed is None or kept.slots_t is None:
                grad_x = spmm_t(rows, matrix)
            else:
                grad_x = vector_spmm(rows, kept.transposed._replace(values=values[kept.slots_t]))
            grad_x = grad_x.to(ctx.dtypes[0]).view(ctx.shape)
        if needs_weight:
            grad_weight = scatter_values(sddmm(rows, flat, matrix), kept.matrix).to(ctx.dtypes[1])
        return grad_x, grad_weight, rows.sum(0).to(ctx.dtypes[1]) if needs_bias else None, None, None


def _dense_gradients(grad: Tensor, x: Tensor, weight: Tensor, ctx: Any) -> Any:
    """The same by plain torch, differentiable once more."""
    matrix, (of_x, of_weight) = ctx.kept.matrix, ctx.dtypes
    needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
    mask = unpack_blocks(matrix._replace(values=grad.new_ones(len(matrix.columns), *matrix.block, dtype=of_weight)))
    rows = grad.reshape(-1, grad.shape[-1]).to(of_weight)
    with no_autocast(grad.device):
        return (
            (rows @ (weight * mask)).to(of_x).view(ctx.shape) if needs_x else None,
            (rows.t() @ x.reshape(-1, x.shape[-1]).to(of_weight)) * mask if needs_weight else None,
            rows.sum(0) if needs_bias else None, None, None,
        )  # fmt: skip


class LinearMasked(nn.Linear):
    """`nn.Linear` of whose weight a mask keeps some units, while all others are zero and stay so.

    `mask_linear` makes one of an `nn.Linear`, in place, and `unmask_linear` makes it one again; parameters, hooks and
    what a `state_dict` holds are the same. In training mode on a CPU its three products run on the units that are kept,
    and the gradient of its weight is zero elsewhere; in evaluation mode, under a compiler and wherever else a tensor
    is more than memory it is an `nn.Linear`. A copy of it, or what is pickled, is an `nn.Linear`.

    Attributes:
        kept: where the units are; None while all are multiplied.
        tokens: how many rows the last input had in training mode.
        computed: what autocast computed with then, None without it.
    """

    kept: MaskedBlocks | MaskedChannels | None
    tokens: int
    computed: torch.dtype | None
    _masked: tuple[Tensor]  # whose zeros `kept` tells of; in a tuple, where nn.Module sees no parameter

    def forward(self, input: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`, under autocast in its dtype."""
        if self.training and isinstance(input, Tensor):  # a tracer's stand-in is none
            self.tokens, self.computed = input.numel() // max(self.in_features, 1), autocast_dtype(input)
            if self.kept is not None and self._fits(input) and not is_seen(input, self.weight) and _has_no_tangent():
                weight, bias, dtype = self.weight, self.bias, self.computed or self.weight.dtype
                if isinstance(self.kept, MaskedChannels):
                    return channel_linear(input, weight, bias, self.kept)
                if dtype is not torch.float16 and (dtype is not weight.dtype or input.dtype is dtype):
                    return _Product.apply(input, weight, bias, self.kept, dtype)
        return linear(input, self.weight, self.bias)

    def _fits(self, input: Tensor) -> bool:
        """Whether the weight is the one that was masked, not what somebody put in its place, and takes this input."""
        kept = cast("MaskedBlocks | MaskedChannels", self.kept)
        weight = self._parameters.get("weight")
        return weight is self._masked[0] and tuple(weight.shape) == kept.shape and input.shape[-1:] == weight.shape[1:]

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.kept is None else f", multiplied={self.kept.density:.4f}")

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = {name: value for name, value in self.__dict__.items() if name not in _OWN}
        return copyreg._reconstructor, (nn.Linear, object, None), state  # type: ignore[attr-defined]


def _has_no_tangent() -> bool:
    return torch.autograd.forward_ad._current_level < 0


def mask_linear(layer: nn.Linear) -> LinearMasked:
    """Make a layer one that may multiply with what is kept of its weight alone, in place."""
    if type(layer) is not nn.Linear:
        raise TypeError(f"layer: want an nn.Linear itself, got {type(layer).__name__}")
    layer.__class__ = LinearMasked
    masked = cast(LinearMasked, layer)
    masked.kept, masked.tokens, masked.computed, masked._masked = None, 0, None, (layer.weight,)
    return masked


def unmask_linear(layer: LinearMasked) -> None:
    """Make it an `nn.Linear` again, in place."""
    for name in _OWN:
        layer.__dict__.pop(name, None)
    layer.__class__ = nn.Linear  # type: ignore[assignment]

"""A linear layer that trains on packed 2:4 kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from trisparse.sparse_ops.packed_modules import autocast_dtype, sparing_integers
from trisparse.sparse_ops.two_four.layout_24 import layout_24
from trisparse.sparse_ops.two_four.mask_24 import mask_24
from trisparse.sparse_ops.two_four.mm_24 import mm_24
from trisparse.sparse_ops.two_four.pack_24 import check_mask, pack_24
from trisparse.sparse_ops.two_four.packed_24 import Packed24


class Linear24Train(nn.Module):
    """`nn.Linear` with a dense master weight that computes with it packed; made by `from_linear`.

    Every forward packs the weight under the layer's patterns, in one read, for both directions: fused optimizers
    change a weight without a sign, so nothing packed outlives a step. Forward multiplies with packed W, the gradient
    of the input with its packed transpose. Packed values have autocast's dtype, without autocast the weight's.
    `state_dict` has `weight`, `bias` and `patterns`: what is kept of each 4 x 4 tile, int16 as two bytes, bit
    column + 4 * row, `[out / 4 rounded up, in / 2]`.
    """

    patterns: Tensor

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter | None, matrix: Packed24, transposed: bool, masked: bool
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = matrix.rows, matrix.cols
        self.weight, self.bias = weight, bias
        self.transposed, self.masked, self.layout = transposed, masked, matrix.layout
        self.register_buffer("patterns", matrix.patterns.view(torch.uint8))  # of a type that DDP can send

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, *, mask: Tensor | None = None, transposed: bool = True, masked: bool = True,
        layout: str | None = None,
    ) -> Linear24Train:  # fmt: skip
        """Take over a layer's parameters, the same objects, so that an optimizer goes on with them.

        Args:
            linear: `in_features` a multiple of 4, with `transposed` `out_features` too.
            mask: what to keep; chosen by magnitude unless given.
            transposed: keep two of four in columns too, so that both directions are sparse. Without it the
                gradient of the input takes W unpacked.
            masked: only kept weights get a gradient; else all do (straight-through).
            layout: of the metadata; that of the weight's device unless given.

        Raises:
            ValueError: a mask that is not 2:4, with the count and the first place, or a shape that does not fit.
            TypeError: a dtype that does not.
        """
        weight = linear.weight.detach()
        layout = layout or layout_24(weight.device)
        matrix = pack_24(weight, layout, mask=mask, transposed=transposed, dtype=_packable(weight))
        assert isinstance(linear.weight, nn.Parameter)
        return cls(linear.weight, linear.bias, matrix, transposed, masked)

    def to_linear(self) -> nn.Linear:
        """The same parameters in an `nn.Linear`; what the mask drops is set to zero in place."""
        with torch.no_grad():
            self.weight.copy_(self.weight.where(self.mask(), 0))
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, "meta", self.weight.dtype)
        linear.weight = self.weight
        linear.register_parameter("bias", self.bias)
        return linear.train(self.training)

    def mask(self) -> Tensor:
        """bool `[out, in]`, True = kept."""
        nothing = self.patterns[:0]
        patterns = self.patterns.view(torch.int16)
        return mask_24(Packed24(nothing, nothing, patterns, self.out_features, self.in_features, self.layout))

    def refresh(self) -> None:
        """Choose what to keep anew, by magnitude; in place, so that captured graphs see it."""
        weight = self.weight.detach()
        matrix = pack_24(weight, self.layout, transposed=self.transposed, dtype=_packable(weight))
        self.patterns.copy_(matrix.patterns.view(torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`."""
        cast = autocast_dtype(x)
        dtype = cast or self.weight.dtype
        patterns = self.patterns.view(torch.int16)
        matrix = pack_24(self.weight, self.layout, patterns=patterns, transposed=self.transposed, dtype=dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        return mm_24(x if cast is None else x.to(cast), matrix, bias, self.weight, self.masked)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"transposed={self.transposed}, masked={self.masked}, layout={self.layout}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Linear24Train:
        before = self.patterns.device
        super()._apply(sparing_integers(fn), recurse)
        if self.patterns.device.type != before.type:
            self.layout = layout_24(self.patterns.device)
        return self

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, errors):
        patterns = state_dict.get(prefix + "patterns")
        if patterns is not None and patterns.shape == self.patterns.shape:
            rows, cols = self.out_features, self.in_features
            given = Packed24(patterns, patterns, patterns.view(torch.int16), rows, cols, self.layout)
            try:
                check_mask(mask_24(given), self.transposed, prefix + "patterns")
            except ValueError as error:
                errors.append(str(error))
                return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, errors)


def _packable(weight: Tensor) -> torch.dtype:
    """A dtype that the weight can be packed in where it lies, when only the patterns are wanted."""
    return torch.bfloat16 if weight.is_cuda else weight.dtype


class _Every:
    """Refreshes layers after every n-th step of an optimizer."""

    def __init__(self, layers: Iterable[Linear24Train], every: int, step: int) -> None:
        self.layers, self.every, self.step = list(layers), every, step

    def __call__(self, *_: Any) -> None:
        self.step += 1
        if self.step % self.every == 0:
            for layer in self.layers:
                layer.refresh()


def refresh_every(optimizer: torch.optim.Optimizer, model: nn.Module, every: int, step: int = 0) -> Any:
    """Let all `Linear24Train` of a model choose what to keep anew after every n-th step of an optimizer.

    Args:
        optimizer: whose steps count.
        model: holds the layers.
        every: how many steps, at least 1.
        step: how many were made before, when training goes on.

    Returns:
        A handle with `.remove()`.

    Raises:
        ValueError: fewer than one step, or no such layer.
    """
    layers = [module for module in model.modules() if isinstance(module, Linear24Train)]
    if every < 1 or not layers:
        raise ValueError(f"every, model: want at least 1 step and 1 Linear24Train, got {every} and {len(layers)}")
    return optimizer.register_step_post_hook(_Every(layers, every, step))

"""A linear layer that trains on packed 2:4 kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trisparse.kernels.layouts_24 import padded
from trisparse.sparse_ops.layout_24 import layout_24
from trisparse.sparse_ops.mask_24 import mask_24
from trisparse.sparse_ops.mm_24 import mm_24
from trisparse.sparse_ops.pack_24 import pack_24
from trisparse.sparse_ops.packed_24 import Packed24
from trisparse.sparse_ops.repack_24 import repack_24


class Linear24Train(nn.Module):
    """`nn.Linear` with a dense master weight that computes with the packed one; made by `from_linear`.

    Forward multiplies with packed W, the gradient of the input with its packed transpose. Packed values follow the
    weight: they are written anew in the first forward after it changed, and in every forward inside `torch.compile`
    and while a CUDA graph is captured, where nobody can ask. `state_dict` has `weight`, `bias` and `patterns`, int16
    `[out / 4 rounded up, in / 4]`: what is kept of each 4 x 4 tile, bit column + 4 * row.
    """

    packed: Tensor
    packed_t: Tensor
    patterns: Tensor
    _packed_state: tuple[int, int]

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter | None, matrix: Packed24, refresh_every: int, masked: bool
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = matrix.rows, matrix.cols
        self.weight, self.bias = weight, bias
        self.refresh_every, self.masked = refresh_every, masked
        for name in ("packed", "packed_t", "patterns"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int16), persistent=False)
        self._times = 0
        self._keep(matrix)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, *, mask: Tensor | None = None, transposed: bool = True, refresh_every: int = 0,
        masked: bool = True, dtype: torch.dtype | None = None, layout: str | None = None,
    ) -> Linear24Train:  # fmt: skip
        """Take over a layer's parameters, the same objects, so that an optimizer goes on with them.

        Args:
            linear: `in_features` a multiple of 4, with `transposed` `out_features` too.
            mask: what to keep, fixed; chosen by magnitude unless given.
            transposed: keep two of four in columns too, so that both directions are sparse. Without it the
                gradient of the input takes W unpacked.
            refresh_every: choose anew by magnitude after so many changes of the weight; 0 never does.
            masked: only kept weights get a gradient; else all do (straight-through).
            dtype: of the packed values; the weight's unless given, on a GPU float16 or bfloat16.
            layout: of the metadata; that of the weight's device unless given.

        Raises:
            ValueError: a mask that is not 2:4, with the count and the first place, a mask that is to be refreshed,
                or a shape that does not fit.
            TypeError: a dtype that does not.
        """
        if refresh_every < 0 or (mask is not None and refresh_every):
            raise ValueError(f"refresh_every: want 0 with a mask, else 0 or more, got {refresh_every}")
        weight = linear.weight.detach()
        layout = layout or layout_24(weight.device)
        matrix = pack_24(weight, layout, mask=mask, transposed=transposed, dtype=dtype)
        assert isinstance(linear.weight, nn.Parameter)
        return cls(linear.weight, linear.bias, matrix, refresh_every, masked)

    def to_linear(self) -> nn.Linear:
        """The same parameters in an `nn.Linear`; what the mask drops is set to zero in place."""
        with torch.no_grad():
            self.weight.copy_(self.weight.where(mask_24(self.matrix), 0))
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, "meta", self.weight.dtype)
        linear.weight = self.weight
        linear.register_parameter("bias", self.bias)
        return linear.train(self.training)

    @property
    def matrix(self) -> Packed24:
        """The weight as it was packed last."""
        packed, packed_t = self.packed.view(self.dtype), self.packed_t.view(self.dtype)
        return Packed24(packed, packed_t, self.patterns, self.out_features, self.in_features, self.layout)

    def refresh(self) -> None:
        """Choose what to keep anew, by magnitude."""
        weight = self.weight.detach()
        self._keep(pack_24(weight, self.layout, transposed=self.packed_t.numel() > 0, dtype=self.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`; under autocast x is cast to the dtype of the packed values."""
        self._follow()
        x = x.to(self.dtype) if torch.is_autocast_enabled(x.device.type) else x
        bias = None if self.bias is None else self.bias.to(self.dtype)
        return mm_24(x, self.matrix, bias, self.weight, self.masked)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"dtype={self.dtype}, layout={self.layout}, transposed={self.packed_t.numel() > 0}, "
            f"refresh_every={self.refresh_every}, masked={self.masked}"
        )

    def _state(self) -> tuple[int, int]:
        """Changes when the weight does: its version when written in place, its address when replaced."""
        return self.weight._version, self.weight.data_ptr()

    def _follow(self) -> None:
        """Bring the packed values up to the weight."""
        if torch.compiler.is_compiling():
            if self.refresh_every:
                raise RuntimeError(
                    "Linear24Train: refresh_every cannot count inside torch.compile; set it to 0, call refresh()"
                )
            repack_24(self.matrix, self.weight)
        elif self._state() != self._packed_state or _is_capturing(self.weight.device):
            self._times += 1
            if self.refresh_every and self._times % self.refresh_every == 0:
                self.refresh()
            else:
                repack_24(self.matrix, self.weight)
                self._packed_state = self._state()

    def _keep(self, matrix: Packed24) -> None:
        self.layout, self.dtype = matrix.layout, matrix.packed.dtype
        self.packed, self.packed_t = matrix.packed.view(torch.int16), matrix.packed_t.view(torch.int16)
        self.patterns, self._packed_state = matrix.patterns, self._state()

    def _pack(self, mask: Tensor, layout: str, dtype: torch.dtype) -> None:
        transposed = self.packed_t.numel() > 0
        self._keep(pack_24(self.weight.detach(), layout, mask=mask, transposed=transposed, dtype=dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Linear24Train:
        before, follows = self.packed.device, self.dtype == self.weight.dtype
        super()._apply(fn, recurse)
        layout = self.layout if self.packed.device.type == before.type else layout_24(self.packed.device)
        dtype = self.weight.dtype if follows else self.dtype
        if (layout, dtype) != (self.layout, self.dtype):
            self._pack(mask_24(self.matrix), layout, dtype)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "patterns"] = self.patterns[: -(-self.out_features // 4), : self.in_features // 4].clone()

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, errors):
        key = prefix + "patterns"
        own = {name: value for name, value in state_dict.items() if name != key}
        super()._load_from_state_dict(own, prefix, local_metadata, strict, missing_keys, unexpected_keys, errors)
        want = [-(-self.out_features // 4), self.in_features // 4]
        if key not in state_dict:
            missing_keys.append(key)
        elif list(state_dict[key].shape) != want:
            errors.append(f"{key}: want {want}, got {list(state_dict[key].shape)}")
        else:
            high, wide = padded(self.out_features, self.in_features, self.layout)
            patterns = self.patterns.new_zeros(high // 4, wide // 4)
            patterns[: want[0], : want[1]] = state_dict[key]
            self._pack(mask_24(self.matrix._replace(patterns=patterns)), self.layout, self.dtype)


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()

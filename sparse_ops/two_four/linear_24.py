"""A linear layer whose weight is packed as 2:4, for inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from trisparse.kernels.layouts_24 import padded
from trisparse.sparse_ops.activations import ACTIVATIONS
from trisparse.sparse_ops.lazy_weight import lazy_weight
from trisparse.sparse_ops.packed_modules import (
    DirectModule,
    autocast_dtype,
    check_exporter,
    sparing_integers,
    warn_of_training,
)
from trisparse.sparse_ops.two_four.layout_24 import layout_24
from trisparse.sparse_ops.two_four.mm_24 import mm_24
from trisparse.sparse_ops.two_four.pack_24 import check_half, check_mask, pack_24
from trisparse.sparse_ops.two_four.packed_24 import Packed24
from trisparse.sparse_ops.two_four.unpack_24 import unpack_24


def stored_places(matrix: Packed24) -> Tensor:
    """bool `[rows, cols]`: where the values of a packed matrix belong, zeros included where the layout tells."""
    if matrix.layout == "library":
        return unpack_24(matrix) != 0
    ones = matrix.packed.clone()
    high, wide = padded(matrix.rows, matrix.cols, matrix.layout)
    ones[: high * wide // 2] = 1
    return unpack_24(matrix._replace(packed=ones)) != 0


class Linear24(DirectModule):
    """`nn.Linear` that keeps only the packed weight, in 16 bits 9/16 of its bytes once sides are padded to 64.

    Mostly made by `from_linear`; made like an `nn.Linear` its weight is zero, for a state_dict to be loaded.
    `state_dict` has `values` `[out, in / 2]`, `bitmask` uint8 `[out, in / 8 rounded up]` (bit j of a byte for its
    column j, as in compressed-tensors' sparse24) and `bias`, whatever layout the device wants. Moved to another
    kind of device the layer packs itself anew. float32 and float64 are for CPUs.
    """

    packed: Tensor

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None, layout: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        weight = torch.zeros(out_features, in_features, device=device, dtype=dtype)
        zeros = torch.zeros(out_features, device=device, dtype=dtype) if bias else None
        self.bias = None if zeros is None else nn.Parameter(zeros, requires_grad=False)
        self.register_buffer("packed", torch.empty(0, dtype=torch.uint8, device="cpu"), persistent=False)
        mask = torch.zeros_like(weight, dtype=torch.bool)
        self._keep(pack_24(weight, layout or layout_24(weight.device), mask=mask))

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, mask: Tensor | None = None, layout: str | None = None, dtype: torch.dtype | None = None
    ) -> Linear24:
        """Pack a layer that is 2:4 already, or what a mask keeps of it.

        Args:
            linear: `in_features` a multiple of 4.
            mask: bool like its weight; without one, what is not zero is kept.
            layout: of the metadata; that of the weight's device unless given.
            dtype: of values and bias; the weight's unless given, on a GPU float16 or bfloat16.

        Raises:
            ValueError: more than two of four are kept, with the count and the first place; a shape that does not fit.
            TypeError: a dtype that does not.
        """
        weight = linear.weight.detach()
        layout, dtype = layout or layout_24(weight.device), dtype or weight.dtype
        if mask is None:
            mask = weight != 0
            if weight.shape[1] % 4 == 0:
                check_mask(mask, False, "weight")
        matrix = pack_24(weight, layout, mask=mask, dtype=dtype)
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, "meta", dtype)
        layer._keep(matrix)
        if linear.bias is not None:
            layer.bias = nn.Parameter(linear.bias.detach().to(dtype, copy=True), requires_grad=False)
        return layer

    def to_linear(self) -> nn.Linear:
        """The same layer, dense, without an activation."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, "meta", self.dtype)
        linear.weight = nn.Parameter(unpack_24(self.matrix))
        linear.register_parameter("bias", None if self.bias is None else nn.Parameter(self.bias.clone()))
        return linear

    @property
    def matrix(self) -> Packed24:
        """The weight; without patterns, which only training needs."""
        packed = self.packed.view(self.dtype)
        patterns = self.packed[:0].view(torch.int16)
        return Packed24(packed, packed[:0], patterns, self.out_features, self.in_features, self.layout)

    @property
    def weight(self) -> Tensor:
        """The dense weight `[out, in]` for code that reads it, unpacked once its values are asked for; not to write."""
        matrix = self.matrix
        like = torch.empty(matrix.rows, matrix.cols, dtype=self.dtype, device="meta")
        return lazy_weight(lambda: unpack_24(matrix), like, matrix.packed.device)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`; under autocast x is cast to the dtype of the weight. See `activate` too."""
        own = self._parameters
        if "bias" in own:  # else it is computed for every call
            y = self.direct(x, self.dtype, cast(Tensor, self._buffers["packed"]), own["bias"])
            if y is not None:
                return y
        check_exporter("Linear24")
        y = mm_24(x if autocast_dtype(x) is None else x.to(self.dtype), self.matrix, self.bias)
        return ACTIVATIONS[self.activation](y)

    def prepared(self) -> Callable[[Tensor], Tensor] | None:
        from trisparse.kernels.cpu.mm_24 import prepare

        matrix = self.matrix
        return prepare(matrix.packed, self.bias, matrix.rows, matrix.cols, matrix.layout, self.activation)

    def train(self, mode: bool = True) -> Linear24:
        """Packed weights do not train, and a warning says so."""
        if mode:
            warn_of_training("Linear24")
        return super().train(mode)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"dtype={self.dtype}, layout={self.layout}"
            + (f", activation={self.activation}" if self.activation != "none" else "")
        )

    def _keep(self, matrix: Packed24) -> None:
        self.layout, self.dtype = matrix.layout, matrix.packed.dtype
        packed = matrix.packed.view(torch.uint8)  # bytes, so that a change of dtype spares the metadata
        if self.packed.shape == packed.shape and self.packed.device == packed.device:
            self.packed.copy_(packed)  # a captured graph reads it where it is
        else:
            self.packed = packed

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Linear24:
        before = self.packed.device
        after = fn(torch.empty(0, dtype=self.dtype, device=before))
        if after.is_cuda:
            check_half(after.dtype)  # before anything is moved
        super()._apply(sparing_integers(fn), recurse)
        layout = self.layout if after.device.type == before.type else layout_24(after.device)
        if (layout, after.dtype) != (self.layout, self.dtype):
            dense, places = unpack_24(self.matrix), stored_places(self.matrix)
            self._keep(pack_24(dense, layout, mask=places, dtype=after.dtype))
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        dense, places = unpack_24(self.matrix), stored_places(self.matrix)
        width = -(-self.in_features // 8)
        destination[prefix + "values"] = dense[places].view(self.out_features, self.in_features // 2)
        bits = torch.nn.functional.pad(places, (0, -self.in_features % 8)).view(self.out_features, width, 8)
        destination[prefix + "bitmask"] = (bits << torch.arange(8, device=bits.device)).sum(-1).to(torch.uint8)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, errors):
        values, bitmask = state_dict.get(prefix + "values"), state_dict.get(prefix + "bitmask")
        own = {key: value for key, value in state_dict.items() if key not in (prefix + "values", prefix + "bitmask")}
        super()._load_from_state_dict(own, prefix, local_metadata, strict, missing_keys, unexpected_keys, errors)
        if values is None or bitmask is None:
            missing_keys += [prefix + k for k, v in (("values", values), ("bitmask", bitmask)) if v is None]
            return
        rows, cols = self.out_features, self.in_features
        want = {"values": [rows, cols // 2], "bitmask": [rows, -(-cols // 8)]}
        for name, tensor in (("values", values), ("bitmask", bitmask)):
            if list(tensor.shape) != want[name]:
                errors.append(f"{prefix}{name}: want {want[name]}, got {list(tensor.shape)}")
                return
        bitmask = bitmask.to(self.packed.device)
        bits = (bitmask[..., None] >> torch.arange(8, device=bitmask.device) & 1).bool()
        places = bits.view(rows, -1)[:, :cols]
        if bool((places.reshape(rows, -1, 4).sum(-1) != 2).any()):
            errors.append(f"{prefix}bitmask: want 2 of every 4 bits set; the file is damaged or of another format")
            return
        dense = torch.zeros(rows, cols, dtype=self.dtype, device=bitmask.device)
        dense[places] = values.to(dense).flatten()
        self._keep(pack_24(dense, self.layout, mask=places))

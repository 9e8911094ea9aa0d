"""A linear layer whose weight is packed in column vectors or blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from trisparse.sparse_ops.blocks.block_spmm import block_spmm
from trisparse.sparse_ops.blocks.packed_blocks import (
    PackedBlocks,
    check_blocks,
    pack_blocks,
    unpack_blocks,
    with_transpose,
)
from trisparse.sparse_ops.blocks.vector_spmm import vector_spmm
from trisparse.sparse_ops.lazy_weight import guarded, lazy_weight
from trisparse.sparse_ops.packed_modules import (
    DirectModule,
    autocast_dtype,
    check_exporter,
    sparing_integers,
    warn_of_training,
)

_STORED = ("columns", "pointers", "order")


class LinearBlocks(DirectModule):
    """`nn.Linear` that keeps only the blocks of its weight that are not all zero; made by `from_linear`.

    Made like an `nn.Linear` its weight is zero, for a state_dict to be loaded. `state_dict` has `values`
    `[slots, n, m]`, `columns` int16 or int32, `pointers` and `order` int32, as `PackedBlocks` documents them, and
    `bias`. Values and bias take part in training once `requires_grad_()` is called on them; what was zero stays so.
    """

    values: nn.Parameter
    columns: Tensor
    pointers: Tensor
    order: Tensor
    slots_t: Tensor
    groups_t: Tensor
    pointers_t: Tensor
    _index_seen: Any = None  # which index was checked, as it was then, and for how many values

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
        block: tuple[int, int] = (4, 1), run: int | None = None, transposed: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.in_features, self.out_features, self.transposed = in_features, out_features, transposed
        zeros = torch.zeros(out_features, device=device, dtype=dtype) if bias else None
        self.bias = None if zeros is None else nn.Parameter(zeros, requires_grad=False)
        weight = torch.zeros(out_features, in_features, device="cpu", dtype=dtype)
        matrix, place = pack_blocks(weight, block, run=run), device or torch.get_default_device()
        self._keep(matrix.to(lambda part: part.to(place)))

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, block: tuple[int, int], *, run: int | None = None, transposed: bool = False
    ) -> LinearBlocks:
        """Pack a layer's weight.

        Args:
            linear: of any size.
            block: `(n, 1)` with n = 1, 2, 4, 8, 16, 32, or n and m from 16, 32, 64, 128.
            run: rows that stay together, as `pack_blocks` takes it.
            transposed: index W by column too, so that the gradient of the input need not unpack it.

        Raises:
            ValueError: a block or run that does not fit.
            TypeError: a dtype that does not.
        """
        matrix = pack_blocks(linear.weight, block, run=run)
        has_bias, dtype = linear.bias is not None, linear.weight.dtype
        layer = cls(0, 0, has_bias, dtype=dtype, block=block, run=matrix.run, transposed=transposed)
        layer.in_features, layer.out_features = linear.in_features, linear.out_features
        layer._keep(matrix)
        if linear.bias is not None:
            layer.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
        layer.training = linear.training  # without a word of it, as `train` would have
        return layer

    def to_linear(self) -> nn.Linear:
        """The same layer, dense, without an activation."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, "meta", self.values.dtype)
        linear.weight = nn.Parameter(unpack_blocks(self.matrix).detach())
        linear.register_parameter("bias", None if self.bias is None else nn.Parameter(self.bias.detach().clone()))
        return linear.train(self.training)

    @property
    def matrix(self) -> PackedBlocks:
        """The weight."""
        held: Any = self._buffers  # past nn.Module's look-up, which for seven tensors takes longer than a small product
        return PackedBlocks(
            self.values, held["columns"].view(self._narrow), held["pointers"], held["order"], held["slots_t"],
            held["groups_t"], held["pointers_t"], self.out_features, self.in_features, self.run, self.longest,
        )  # fmt: skip

    @property
    def weight(self) -> Tensor:
        """The dense weight `[out, in]` for code that reads it, unpacked once its values are asked for; not to write.

        Where the values are trained it is unpacked at once, and gradients reach them.
        """
        matrix, values = self.matrix, self.values
        if values.requires_grad and torch.is_grad_enabled():
            return guarded(unpack_blocks(matrix))
        like = torch.empty(matrix.rows, matrix.cols, dtype=values.dtype, device="meta")
        return lazy_weight(lambda: unpack_blocks(matrix), like, values.device)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`; under autocast x is cast to the dtype of the weight. See `activate` too."""
        own, held = self._parameters, self._buffers  # past nn.Module's look-up, which takes as long as a small product
        index: Any = held["columns"], held["pointers"], held["order"]
        values = cast(Tensor, own["values"])
        if "bias" in own:  # else it is computed for every call
            y = self.direct(x, values.dtype, values, own["bias"], *index)
            if y is not None:
                return y
        check_exporter("LinearBlocks")
        if not torch.compiler.is_compiling():
            self._check_index()
        product = vector_spmm if self.block[1] == 1 else block_spmm
        return product(
            x if autocast_dtype(x) is None else x.to(self.values.dtype), self.matrix, self.bias, self.activation
        )

    def prepared(self) -> Callable[[Tensor], Tensor] | None:
        from trisparse.kernels.cpu.spmm import prepare

        self._check_index()
        return prepare(self.matrix, self.bias, self.activation)

    def _check_index(self) -> None:
        """ValueError where something wrote to the index since it was made, and no kernel may read it.

        On a CPU; on a GPU a look would wait for the device.
        """
        index: Any = [self._buffers[name] for name in _STORED]
        if any(type(part) is not Tensor or part.device.type != "cpu" or part.is_inference() for part in index):
            return
        versions = tuple(self.values.shape), *((id(part), part._version) for part in index)
        if versions != self._index_seen:
            check_blocks(self.matrix)
            self._index_seen = versions

    def train(self, mode: bool = True) -> LinearBlocks:
        """Packed weights do not train, and a warning says so."""
        if mode and not self.values.requires_grad:
            warn_of_training("LinearBlocks")
        return super().train(mode)

    def extra_repr(self) -> str:
        n, m = self.block
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"block={n}x{m}, run={self.run}, stored={self.values.numel()}"
            + (f", activation={self.activation}" if self.activation != "none" else "")
        )

    def _keep(self, matrix: PackedBlocks) -> None:
        self.block, self.run, self.longest = matrix.block, matrix.run, matrix.longest
        self._narrow = matrix.columns.dtype

        trains = "values" in self._parameters and self.values.requires_grad
        self.values = nn.Parameter(matrix.values, requires_grad=trains)
        matrix = with_transpose(matrix) if self.transposed else matrix
        for name in (*_STORED, "slots_t", "groups_t", "pointers_t"):
            part = getattr(matrix, name)
            part = part.view(torch.uint8) if name == "columns" else part  # int16 is a type that DDP cannot send
            self.register_buffer(name, part, persistent=name in _STORED)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LinearBlocks:
        super()._apply(sparing_integers(fn), recurse)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "columns"] = destination[prefix + "columns"].view(self._narrow)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, errors):
        packed = {name: state_dict.get(prefix + name) for name in ("values", *_STORED)}
        own = {key: value for key, value in state_dict.items() if key[len(prefix) :] not in packed}
        given: list[str] = []
        super()._load_from_state_dict(own, prefix, local_metadata, strict, given, unexpected_keys, errors)
        missing_keys += [key for key in given if key[len(prefix) :] not in packed]
        missing_keys += [prefix + name for name, part in packed.items() if part is None]
        if any(part is None for part in packed.values()):
            return
        try:
            self._keep(self._checked(**packed))
        except ValueError as error:
            errors.append(f"{prefix.rstrip('.')}: {error}")

    def _checked(self, values: Tensor, columns: Tensor, pointers: Tensor, order: Tensor) -> PackedBlocks:
        """What a state_dict holds, where this layer is and in its dtype."""
        if values.dim() != 3 or tuple(values.shape[1:]) != self.block:
            raise ValueError(f"values: want [slots, {self.block[0]}, {self.block[1]}], got {list(values.shape)}")
        if columns.dtype not in (torch.int16, torch.int32) or {pointers.dtype, order.dtype} != {torch.int32}:
            raise ValueError("columns, pointers, order: want int16 or int32, int32, int32")
        device, none = self.values.device, self.pointers.new_empty(0)  # a view would keep what it is of
        longest = int(pointers.diff().max()) if len(pointers) > 1 else 0
        columns, pointers, order = (part.to(device, copy=True) for part in (columns, pointers, order))
        numbers = self.out_features, self.in_features, self.run, longest
        own = values.to(self.values, copy=True)
        matrix = PackedBlocks(own, columns, pointers, order, none, none, none, *numbers)
        check_blocks(matrix)
        return matrix

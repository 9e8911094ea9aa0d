"""The weight of a packed layer as other code reads it: known by its sizes, unpacked when its values are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only


class LazyWeight(Tensor):
    """Shape, dtype and device of a dense weight, without its values until an operator reads them; never written to.

    Views are lazy weights too, so that writing to one is refused as well; whatever else is computed is a plain tensor.
    """

    __torch_function__: Any = torch._C._disabled_torch_function_impl
    _read: Callable[[], Tensor]
    _unpacked: Tensor | None

    @staticmethod
    def __new__(cls, read: Callable[[], Tensor], like: Tensor, device: torch.device) -> LazyWeight:
        """`like` has the sizes and the dtype; it may be a meta tensor."""
        sizes = like.shape, like.stride(), like.storage_offset()
        weight = Tensor._make_wrapper_subclass(cls, *sizes, dtype=like.dtype, device=device)
        weight._read, weight._unpacked = read, None
        return weight

    @property
    def dense(self) -> Tensor:
        """The values; unpacked once, and kept for as long as this object is."""
        if self._unpacked is None:
            with torch.no_grad():
                self._unpacked = self._read()
        return self._unpacked

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs, schema = kwargs or {}, func._schema
        for index, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = args[index] if index < len(args) else kwargs.get(argument.name)
                if any(isinstance(leaf, LazyWeight) for leaf in tree_leaves(given)):
                    raise _refused(schema.name)
        if func is torch.ops.aten.detach.default:  # `.data` as well; asks for no values
            source = args[0]
            return LazyWeight(lambda: source.dense, source, source.device)
        args, kwargs = tree_map_only(LazyWeight, lambda weight: weight.dense, (args, kwargs))
        result = func(*args, **kwargs)
        is_view = any(value.alias_info is not None and not value.alias_info.is_write for value in schema.returns)
        return tree_map_only(Tensor, _view, result) if is_view else result

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, _: Tensor) -> None:
        raise _refused("data")

    def requires_grad_(self, requires_grad: bool = True) -> LazyWeight:
        if requires_grad and not self.requires_grad:
            raise _refused("requires_grad_")
        return self

    # what follows reads memory without an operator

    def data_ptr(self) -> int:
        return self.dense.data_ptr()

    def numpy(self, *, force: bool = False) -> Any:
        array = self.dense.numpy(force=force)
        array.setflags(write=False)
        return array

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy().__array__(*args, **kwargs)

    def tolist(self) -> Any:
        return self.dense.tolist()

    def untyped_storage(self) -> Any:
        return self.dense.untyped_storage()

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.dense.clone().__dlpack__(**kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return memo.setdefault(id(self), self.dense.clone())

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.dense.__reduce_ex__(protocol)


def lazy_weight(read: Callable[[], Tensor], like: Tensor, device: torch.device) -> Tensor:
    """What `read` unpacks, like a meta tensor; at once where a graph is made, since that drops what is not used."""
    if torch.compiler.is_compiling():
        return read()
    return LazyWeight(read, like, device)


def guarded(dense: Tensor) -> Tensor:
    """An unpacked weight that gradients go through to what is packed, but that is not written to."""
    return dense if torch.compiler.is_compiling() else _Guarded.apply(dense)


class _Guarded(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, dense: Tensor) -> Tensor:
        return _view(dense.detach())

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        return grad


def _view(dense: Tensor) -> LazyWeight:
    return LazyWeight(lambda: dense, dense, dense.device)


def _refused(what: str) -> RuntimeError:
    return RuntimeError(
        f"weight: {what} would be lost, since the layer keeps its weight packed; call trisparse.decompress(model) "
        "first, or clone() the weight"
    )

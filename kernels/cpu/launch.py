"""What the launchers of the C++ kernels share."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from trisparse.kernels.cpu.build import kernels

DTYPES = (torch.float32, torch.bfloat16)
ACTIVATIONS = {"none": 0, "relu": 1, "gelu": 2, "gelu_tanh": 3}
Product = Callable[[Tensor], Tensor]  # x `[..., cols]` to `[..., rows]`


@functools.cache
def function_of(name: str, tensors: int = 2) -> Callable[..., None] | None:
    """The C++ function that takes a weight, so many tensors, tokens and threads; None where there is none."""
    library = kernels()
    if library is None:
        return None
    function = getattr(library, name)
    function.argtypes = [ctypes.c_void_p] * (tensors + 1) + [ctypes.c_int64] * 2
    function.restype = None
    return function


def runs_packed(dtype: torch.dtype) -> bool:
    """Whether there are kernels for values of this dtype, on this machine."""
    return dtype in DTYPES and kernels() is not None


def structure(name: str, addresses: Sequence[str], numbers: Sequence[str]) -> Any:
    """A C structure of pointers and 64-bit integers."""
    fields = [(field, ctypes.c_void_p) for field in addresses] + [(field, ctypes.c_int64) for field in numbers]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


def plain(tensor: Tensor) -> Tensor:
    """As it lies in memory; looking takes less than `contiguous` does where there is nothing to do."""
    return tensor if tensor.is_contiguous() and not tensor.is_neg() else tensor.detach().resolve_neg().contiguous()


def prepare_product(
    name: str, make: Any, parts: Sequence[Tensor], bias: Tensor | None, numbers: Sequence[int], activation: str
) -> Product | None:
    """A product that is called often with one weight, by the C++ function `name`.

    It reads the tensors where they lie now, and keeps them alive. None where there is no kernel for them.

    Args:
        name: of the function; its arguments are the structure, x, y, tokens and threads.
        make: the structure of addresses (parts, bias) and numbers (rows, cols, numbers, whether bf16, activation).
        parts: the values first.
        bias: `[rows]` or None.
        numbers: rows and columns first.
        activation: a key of ACTIVATIONS.
    """
    rows, cols, *_ = numbers
    parts = [plain(part) for part in parts]
    bias = None if bias is None else plain(bias)
    dtype = parts[0].dtype
    fits = bias is None or (bias.shape == (rows,) and bias.dtype == dtype and bias.is_cpu)
    function: Any = function_of(name) if fits and cols and dtype in DTYPES and all(p.is_cpu for p in parts) else None
    if function is None:
        return None
    addresses = [part.data_ptr() for part in parts]
    addresses.append(0 if bias is None else bias.data_ptr())
    weight = make(*addresses, *numbers, dtype == torch.bfloat16, ACTIVATIONS[activation])
    address, threads = ctypes.addressof(weight), torch.get_num_threads

    def product(x: Tensor, held: Any = (parts, bias, weight)) -> Tensor:
        shape = x.shape
        if not shape or shape[-1] != cols:
            raise ValueError(f"x: want [..., {cols}] for a matrix [{rows}, {cols}], got {list(shape)}")
        x = plain(x)
        out = x.new_empty((*shape[:-1], rows))
        function(address, x.data_ptr(), out.data_ptr(), x.numel() // cols, threads())
        return out

    return product

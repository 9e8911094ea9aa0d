"""The two libraries in torch that multiply 2:4 matrices on sparse tensor cores: cuSPARSELt and CUTLASS."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

from trisparse.kernels.layouts_24 import padded
from trisparse.sparse_ops.two_four.packed_24 import padded_to

TOKENS = 8  # both want a multiple of it


class Library24(NamedTuple):
    """What a library does with a matrix whose sides are padded.

    Attributes:
        name: as its users know it.
        layouts: in which its metadata may be.
        compress: dense 2:4 `[rows, cols]` to packed, flat.
        multiply: `x [tokens, cols]`, packed, bias `[rows]` or None, rows, to `[tokens, rows]`; tokens in eights.
    """

    name: str
    layouts: tuple[str, ...]
    compress: Callable[[Tensor], Tensor]
    multiply: Callable[[Tensor, Tensor, Tensor | None, int], Tensor]


def _cslt_compress(dense: Tensor) -> Tensor:
    return torch._cslt_compress(dense).flatten()  # [rows, …] since torch 2.11


# cuSPARSELt's version and the device's capability -> up to how many outputs which algorithm is the fastest; the numbers
# are those of an H200 over nine shapes and 72 to 8192 tokens, where the library's own choice takes up to twice as long
_ALGORITHMS: dict[tuple[int, ...], tuple[tuple[float, int], ...]] = {
    (800, 9, 0): ((1e6, 15), (3e6, 13), (math.inf, 17)),
}


@functools.cache
def _algorithms(device: torch.device) -> tuple[tuple[float, int], ...]:
    """What is known of this device and library; else the library's own choice."""
    if device.type != "cuda":
        return ((math.inf, 0),)
    version = torch.backends.cusparselt.version() or 0
    return _ALGORITHMS.get((version, *torch.cuda.get_device_capability(device)), ((math.inf, 0),))


def _cslt_multiply(x: Tensor, packed: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    number = next(number for most, number in _algorithms(x.device) if len(x) * rows <= most)
    return torch._cslt_sparse_mm(packed.view(rows, -1), x.t(), bias=bias, transpose_result=True, alg_id=number)


def _cutlass_compress(dense: Tensor) -> Tensor:
    values, metadata = sparse_semi_structured_from_dense_cutlass(dense)  # torch's compiled one is for its tests
    return torch.cat([values.flatten(), metadata.flatten().view(dense.dtype)])


def _cutlass_multiply(x: Tensor, packed: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    values, metadata = packed[: rows * x.shape[1] // 2].view(rows, -1), packed[rows * x.shape[1] // 2 :]
    metadata = metadata.view(torch.int16).view(rows, -1)
    if bias is None:
        return torch._sparse_semi_structured_mm(values, metadata, x.t()).t()
    return torch._sparse_semi_structured_addmm(bias, values, metadata, x.t()).t()


CUSPARSELT = Library24("cuSPARSELt", ("cslt_sm90", "cslt_sm80"), _cslt_compress, _cslt_multiply)
CUTLASS = Library24("CUTLASS", ("cutlass_sm80",), _cutlass_compress, _cutlass_multiply)
_WANTED = {
    "_cslt_sparse_mm": ("compressed_A", "dense_B", "bias", "transpose_result", "alg_id"),
    "_sparse_semi_structured_mm": ("mat1", "mat1_meta", "mat2"),
    "_sparse_semi_structured_addmm": ("input", "mat1", "mat1_meta", "mat2"),
}


def missing_arguments(name: str) -> list[str]:
    """What we pass to one of torch's operators and its schema, which differs between releases, does not have."""
    operator = getattr(torch.ops.aten, name, None)
    has = {argument.name for argument in operator.default._schema.arguments} if operator is not None else set()
    return [argument for argument in _WANTED[name] if argument not in has]


@functools.cache
def library_for(device: torch.device) -> Library24 | None:
    """The library that this device and this torch can use, cuSPARSELt before CUTLASS."""
    if device.type != "cuda" or torch.version.hip:
        return None
    capability = torch.cuda.get_device_capability(device)
    if capability >= (8, 0) and torch.backends.cusparselt.is_available() and not missing_arguments("_cslt_sparse_mm"):
        return CUSPARSELT
    missing = missing_arguments("_sparse_semi_structured_mm") + missing_arguments("_sparse_semi_structured_addmm")
    return CUTLASS if capability[0] == 8 and not missing else None


def compress(dense: Tensor, layout: str, transposed: bool) -> tuple[Tensor, Tensor]:
    """A 2:4 matrix packed by the library itself, and its transpose, empty unless wanted."""
    library = library_for(dense.device)
    assert library is not None
    dense = padded_to(dense, layout)
    packed = library.compress(dense.contiguous())
    return packed, library.compress(dense.t().contiguous()) if transposed else packed.new_empty(0)


def multiply(
    library: Library24, x: Tensor, packed: Tensor, bias: Tensor | None, rows: int, cols: int, layout: str
) -> Tensor:
    """`[tokens, rows]`; x `[tokens, cols]` and bias `[rows]` are padded as the matrix was."""
    tokens, (high, wide) = x.shape[0], padded(rows, cols, layout)
    if wide > cols or tokens % TOKENS:  # without need it would copy
        x = pad(x, (0, wide - cols, 0, -tokens % TOKENS))
    if bias is not None and high > rows:
        bias = pad(bias, (0, high - rows))
    return library.multiply(x.contiguous(), packed, bias, high)[:tokens, :rows].contiguous()

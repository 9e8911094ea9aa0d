"""Fixtures of the GPU kernels' tests: torch's 2:4 operators on the CPU, with their shapes, checks and defaults on a GPU.

After cuSPARSELtOps.cpp, SparseSemiStructuredOps.cu and _meta_registrations.py of torch 2.10 (a packed matrix is flat) and
2.11 to 2.13 (it has a row for each row). What is packed is read in the order that it was written in, never past its end.
"""

import pytest
import torch

from trisparse.kernels.layouts_24 import packed_size
from trisparse.sparse_ops.two_four.packed_24 import pack_reference
from trisparse.sparse_ops.two_four.unpack_24 import unpack_24_reference


def _turned(packed, rows, cols, layout):
    """The metadata backwards: an order that nobody knows. Doing it twice undoes it."""
    values, _ = packed_size(rows, cols, layout, packed.element_size())
    return torch.cat([packed[:values], packed[values:].flip(0)])


class CusparseLt:
    """`torch._cslt_compress` and `torch._cslt_sparse_mm`.

    Args:
        layout: of the metadata; `library` for an order that is none of ours.
        dims: of what compress returns: 1 until torch 2.10, 2 since.
        surplus: bytes more than 9/16 that it stores of a matrix with a side that is an odd multiple of 64.
    """

    def __init__(self, layout, dims=2, surplus=0):
        self.layout, self.dims, self.surplus = layout, dims, surplus
        self.known = "cslt_sm90" if layout == "library" else layout

    def _size(self, rows, cols):
        odd = rows % 128 or cols % 128
        return packed_size(rows, cols, self.known, 2)[1] + (self.surplus // 2 if odd else 0)

    def compress(self, dense):
        rows, cols = dense.shape
        if dense.dtype not in (torch.float16, torch.bfloat16):
            raise RuntimeError("Unsupported dtype for cuSPARSELt compressed matrix")
        if not dense.is_contiguous() or rows % 16 or cols % 16:
            raise RuntimeError("CUDA error: an illegal value when calling cusparseLtStructuredDescriptorInit")
        packed = dense.new_zeros(self._size(rows, cols))
        ours = pack_reference(dense, dense != 0, self.known)
        packed[: ours.numel()] = _turned(ours, rows, cols, self.known) if self.layout == "library" else ours
        if self.dims == 1:
            return packed
        full = dense.new_zeros(rows, -(-packed.numel() // rows))
        full.view(-1)[: packed.numel()] = packed
        return full

    def sparse_mm(
        self, compressed_A, dense_B, bias=None, alpha=None, out_dtype=None, transpose_result=False, alg_id=0,  # noqa: N803
        split_k=1, split_k_mode=-1,
    ):  # fmt: skip
        assert (alpha, out_dtype, alg_id, split_k, split_k_mode) == (
            None,
            None,
            0,
            1,
            -1,
        )  # no algorithm is known of a CPU
        assert compressed_A.dtype == dense_B.dtype
        assert dense_B.dim() == 2
        if compressed_A.dim() != 2:
            raise RuntimeError("compressed_A must be a 2D tensor")
        (cols, tokens), rows = dense_B.shape, compressed_A.shape[0]
        assert not tokens % 8, "cuSPARSELt wants columns in eights for 16 bits"
        packed = compressed_A.reshape(-1)
        assert packed.numel() >= self._size(rows, cols), "read past the end of a packed matrix"
        assert bias is None or (bias.shape == (rows,) and bias.dtype == dense_B.dtype and bias.is_contiguous())
        packed = packed[: packed_size(rows, cols, self.known, 2)[1]]
        packed = _turned(packed, rows, cols, self.known) if self.layout == "library" else packed
        y = dense_B.t().double() @ unpack_24_reference(packed, rows, cols, self.known).double().t()
        y = (y if bias is None else y + bias).to(dense_B.dtype)
        return y if transpose_result else y.t().contiguous()

    def patch(self, monkeypatch):
        monkeypatch.setattr(torch, "_cslt_compress", self.compress)
        monkeypatch.setattr(torch, "_cslt_sparse_mm", self.sparse_mm)


class Cutlass:
    """`torch._sparse_semi_structured_mm` and `_addmm`; packing is torch's own, which runs anywhere."""

    layout = "cutlass_sm80"

    def mm(self, mat1, mat1_meta, mat2, *, out_dtype=None):
        assert out_dtype is None
        assert mat1.dim() == mat1_meta.dim() == mat2.dim() == 2
        assert mat1.shape[1] * 2 == mat2.shape[0], "mat1 has half of the columns"
        (rows, half), cols = mat1.shape, mat2.shape[0]
        assert not rows % 32
        assert not cols % 64
        assert not mat2.shape[1] % 8
        assert mat1_meta.dtype == torch.int16
        assert list(mat1_meta.shape) == [rows, cols // 16]
        packed = torch.cat([mat1.reshape(-1), mat1_meta.reshape(-1).view(mat1.dtype)])
        assert packed.numel() == rows * half * 9 // 8
        return (unpack_24_reference(packed, rows, cols, self.layout).double() @ mat2.double()).to(mat2.dtype)

    def addmm(self, input, mat1, mat1_meta, mat2, *, alpha=1, beta=1, out_dtype=None):
        assert (alpha, beta) == (1, 1)
        assert list(input.shape) == [mat1.shape[0]], "only input broadcasted to columns is supported"
        return self.mm(mat1, mat1_meta, mat2, out_dtype=out_dtype) + input[:, None]

    def patch(self, monkeypatch):
        monkeypatch.setattr(torch, "_sparse_semi_structured_mm", self.mm)
        monkeypatch.setattr(torch, "_sparse_semi_structured_addmm", self.addmm)


@pytest.fixture
def cusparselt(monkeypatch):
    """Puts cuSPARSELt's operators in: `cusparselt(layout, dims, surplus)`."""

    def put(*args, **settings):
        library = CusparseLt(*args, **settings)
        library.patch(monkeypatch)
        return library

    return put


@pytest.fixture
def cutlass(monkeypatch):
    """Puts CUTLASS's operators in."""
    return lambda: Cutlass().patch(monkeypatch)

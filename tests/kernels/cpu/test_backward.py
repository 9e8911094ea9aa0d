"""The C++ gradients of products: under sanitizers over odd shapes, against fp64, the same on any number of threads."""

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear

from tests.kernels.cpu.test_spmm import BLOCKS, operands
from trisparse.kernels.cpu.sddmm import sddmm
from trisparse.kernels.cpu.spmm_t import spmm_t
from trisparse.sparse_ops import pack_blocks, vector_spmm
from trisparse.sparse_ops.blocks.sddmm import sddmm_reference
from trisparse.sparse_ops.blocks.spmm_t import spmm_t_reference

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")


@pytest.mark.parametrize("source", ["spmm_t_check.cpp", "sddmm_check.cpp", "gather_check.cpp"])
def test_sanitized_gradients_over_odd_shapes(run_sanitized, source):
    run_sanitized(source)


def wide(matrix):
    """In fp64."""
    return matrix._replace(values=matrix.values.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("tokens", [1, 40, 300])
def test_no_less_exact_than_dense_gradients(block, tokens, dtype):
    x, weight, matrix, _ = operands(block, 100, 333, tokens, dtype=dtype)
    grad = torch.randn(tokens, 100).to(dtype)
    want = spmm_t_reference(grad.double(), *wide(matrix))
    error = float((spmm_t(grad, matrix).double() - want).norm())
    assert error <= 2 * float(((grad @ weight).double() - want).norm())
    want = sddmm_reference(grad.double(), x.double(), *wide(matrix))
    error = float((sddmm(grad, x, matrix).double() - want).norm())
    assert error <= 2 * float((sddmm_reference(grad, x, *matrix).double() - want).norm())


@settings(max_examples=60, deadline=None)
@given(
    block=st.sampled_from(BLOCKS), rows=st.integers(1, 70), cols=st.integers(1, 90), tokens=st.integers(0, 200),
    density=st.sampled_from([0.0, 0.1, 0.6, 1.0]), split=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_packing(block, rows, cols, tokens, density, split, seed):
    torch.manual_seed(seed)
    run = 1 if split and block[1] == 1 else None
    x, weight, matrix, _ = operands(block, rows, cols, tokens, density, run=run)
    grad = torch.randn(tokens, rows)
    torch.testing.assert_close(spmm_t(grad, matrix), grad @ weight, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sddmm(grad, x, matrix), sddmm_reference(grad, x, *matrix), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", [(1, 1), (4, 1), (16, 16)])
def test_threads_change_nothing(block):
    x, _, matrix, _ = operands(block, 300, 500, 200)
    grad = torch.randn(200, 300)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append((spmm_t(grad, matrix), sddmm(grad, x, matrix)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert torch.equal(found[0][0], other[0])
        assert torch.equal(found[0][1], other[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autograd_reaches_them(dtype, monkeypatch):
    """Also without an index by column, and for operands that are not contiguous."""
    weight = torch.randn(40, 60) * (torch.rand(10, 60) < 0.3).repeat_interleave(4, 0)
    matrix = pack_blocks(weight.to(dtype), (4, 1))
    x = torch.randn(60, 33).to(dtype).t().requires_grad_()
    values = matrix.values.requires_grad_()
    grad = torch.randn(40, 33).to(dtype).t()
    monkeypatch.setattr("trisparse.sparse_ops.blocks.spmm.unpack_blocks", lambda _: pytest.fail("unpacked"))
    found = torch.autograd.grad(vector_spmm(x, matrix._replace(values=values)), (x, values), grad)
    dense = weight.to(dtype).requires_grad_()
    want = torch.autograd.grad(linear(x, dense), (x, dense), grad)
    torch.testing.assert_close(found[0], want[0], rtol=2e-2, atol=2e-2)
    kept = dense.detach() != 0
    assert torch.allclose(found[1].float().sum(), want[1][kept].float().sum(), rtol=2e-2, atol=0.5)


def test_what_there_is_no_kernel_for():
    _, _, matrix, _ = operands((4, 1), 8, 8, 2)
    double = wide(matrix)
    assert spmm_t(torch.randn(2, 8, dtype=torch.float64), double) is None
    assert sddmm(torch.randn(2, 8, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64), double) is None
    assert spmm_t(torch.randn(2, 8, dtype=torch.bfloat16), matrix) is None  # not the dtype of the values

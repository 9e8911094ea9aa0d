"""Gradients of packed vectors as dense products against their references."""

import pytest
import torch

from trisparse.sparse_ops import pack_blocks
from trisparse.sparse_ops.blocks.dense_gradients import FEW_TOKENS, input_gradient, is_dense, values_gradient
from trisparse.sparse_ops.blocks.packed_blocks import unpack_blocks
from trisparse.sparse_ops.blocks.sddmm import sddmm_reference
from trisparse.sparse_ops.blocks.spmm_t import spmm_t_reference


@pytest.mark.parametrize("shape", [(64, 48), (37, 50), (0, 8), (8, 0), (3, 1)], ids=str)
@pytest.mark.parametrize(("height", "run"), [(4, 4), (8, 2), (32, 32)])
def test_equal_the_references(height, run, shape):
    torch.manual_seed(0)
    matrix = pack_blocks(torch.randn(shape) * (torch.rand(shape) < 0.2), (height, 1), run=run)
    grad, x = torch.randn(70, shape[0]), torch.randn(70, shape[1])
    torch.testing.assert_close(input_gradient(grad, matrix), grad @ unpack_blocks(matrix))
    found = values_gradient(grad, x, matrix)
    assert found.shape == matrix.values.shape
    if matrix.values.numel():
        torch.testing.assert_close(found, sddmm_reference(grad, x, *matrix))
    assert not found[matrix.columns < 0].any()  # what fills up a group stays zero


@pytest.mark.parametrize(("block", "tokens", "want"), [((4, 1), 0, False), ((4, 1), 1, True), ((16, 16), 1, False)])
def test_of_vectors_for_many_tokens(block, tokens, want):
    assert is_dense(torch.zeros(FEW_TOKENS + tokens, 32), pack_blocks(torch.ones(32, 32), block)) is want


def test_a_result_has_the_dtype_of_its_gradient_under_autocast():
    matrix = pack_blocks(torch.ones(8, 8), (4, 1))
    with torch.autocast("cpu", torch.bfloat16):
        assert input_gradient(torch.ones(70, 8), matrix).dtype == torch.float32
        assert values_gradient(torch.ones(70, 8), torch.ones(70, 8), matrix).dtype == torch.float32


def test_references_of_gradients_are_not_rounded_by_autocast():
    matrix = pack_blocks(torch.randn(8, 16), (4, 1))
    grad, x = torch.randn(70, 8), torch.randn(70, 16)
    want = spmm_t_reference(grad, *matrix), sddmm_reference(grad, x, *matrix)
    with torch.autocast("cpu", torch.bfloat16):
        found = spmm_t_reference(grad, *matrix), sddmm_reference(grad, x, *matrix)
    torch.testing.assert_close(found, want, rtol=0, atol=0)

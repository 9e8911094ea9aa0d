"""Products with packed matrices: values, gradients, shapes."""

import pytest
import torch
from torch.nn.functional import linear

from trisparse.sparse_ops import mask_24, mm_24, pack_24, unpack_24


@pytest.fixture
def tensors():
    """x, W, bias in float64, all with gradients."""
    shapes = (3, 2, 12), (8, 12), (8,)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("transposed", [False, True])
def test_gradcheck(tensors, transposed):
    mask = mask_24(pack_24(tensors[1].detach(), "cslt_sm90", transposed=transposed))

    def product(x, weight, bias):
        matrix = pack_24(weight.detach(), "cslt_sm90", mask=mask, transposed=transposed)
        return mm_24(x, matrix, bias, weight)

    assert torch.autograd.gradcheck(product, tensors)


@pytest.mark.parametrize("masked", [True, False])
def test_equals_the_masked_dense_product(tensors, masked):
    x, weight, bias = tensors
    matrix = pack_24(weight.detach(), "cutlass_sm80", transposed=True)
    y = mm_24(x, matrix, bias, weight, masked)
    dense, out = unpack_24(matrix).requires_grad_(), torch.randn_like(y)
    want = linear(x, dense, bias)
    torch.testing.assert_close(y, want)
    got = torch.autograd.grad(y, tensors, out)
    grad_x, grad_w, grad_b = torch.autograd.grad(want, (x, dense, bias), out)
    grad_w = grad_w.where(mask_24(matrix), 0) if masked else grad_w
    torch.testing.assert_close(got, (grad_x, grad_w, grad_b))


def test_without_weight_or_bias(tensors):
    x, weight, _ = tensors
    matrix = pack_24(weight.detach(), "bitmask")
    y = mm_24(x, matrix)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad, unpack_24(matrix).sum(0).expand_as(x))
    assert mm_24(x[:0], matrix).shape == (0, 2, 8)


def test_gradients_have_the_dtype_of_the_master_weight():
    weight = torch.randn(8, 12, requires_grad=True)
    matrix = pack_24(weight.detach(), "cslt_sm90", transposed=True, dtype=torch.bfloat16)
    mm_24(torch.randn(5, 12).bfloat16(), matrix, None, weight).sum().backward()
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_are_not_rounded_by_an_autocast_around_backward(transposed):
    x, weight = torch.randn(5, 12, requires_grad=True), torch.randn(8, 12, requires_grad=True)
    matrix = pack_24(weight.detach(), "bitmask" if not transposed else "cslt_sm90", transposed=transposed)
    want = torch.autograd.grad(mm_24(x, matrix, None, weight).sum(), (x, weight))
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(mm_24(x, matrix, None, weight).sum(), (x, weight))
    torch.testing.assert_close(found, want, rtol=0, atol=0)


def test_a_second_derivative_is_refused(tensors):
    x, weight, _ = tensors
    y = mm_24(x, pack_24(weight.detach(), "bitmask"), None, weight)
    with pytest.raises(RuntimeError, match="mm_24: has no second derivative"):
        torch.autograd.grad(y.square().sum(), x, create_graph=True)
    y = mm_24(x, pack_24(weight.detach(), "bitmask"), None, weight)
    with pytest.raises(RuntimeError, match="mm_24: has no second derivative"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_no_columns_and_one_token():
    matrix = pack_24(torch.randn(8, 0), "bitmask")
    assert torch.equal(mm_24(torch.randn(3, 0), matrix, torch.ones(8)), torch.ones(3, 8))
    matrix = pack_24(torch.randn(8, 12), "bitmask")
    assert mm_24(torch.randn(12), matrix).shape == (8,)


def test_mistakes(tensors):
    x, weight, bias = (tensor.detach() for tensor in tensors)
    matrix = pack_24(weight, "bitmask")
    with pytest.raises(ValueError, match=r"x: want \[..., 12\] for a matrix \[8, 12\], got \[3, 2, 8\]"):
        mm_24(x[..., :8], matrix)
    with pytest.raises(ValueError, match=r"bias: want \[8\] for a matrix \[8, 12\], got \[7\]"):
        mm_24(x, matrix, bias[:7])
    with pytest.raises(TypeError, match="x: want torch.float64 like the packed values, got torch.float32"):
        mm_24(x.float(), matrix)
    with pytest.raises(TypeError, match="bias: want torch.float64 like the packed values, got torch.float16"):
        mm_24(x, matrix, bias.half())
    with pytest.raises(ValueError, match=r"weight: want \[8, 12\] as packed, got \[12, 8\]"):
        mm_24(x, matrix, weight=weight.t())
    with pytest.raises(ValueError, match=r"matrix: 16 packed numbers are not those of \[8, 12\] in bitmask"):
        mm_24(x, matrix._replace(packed=matrix.packed[:16]))
    with pytest.raises(ValueError, match="packed: want all on meta like x, got cpu"):
        mm_24(x.to("meta"), matrix)

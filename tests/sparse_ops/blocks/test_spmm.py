"""Products with vectors and blocks: values, gradients, checks; on a CPU W is unpacked."""

import pytest
import torch
from torch.nn.functional import gelu, linear

from trisparse.sparse_ops import block_spmm, pack_blocks, unpack_blocks, vector_spmm
from trisparse.sparse_ops.activations import ACTIVATIONS

CASES = [
    (vector_spmm, (4, 1), None),
    (vector_spmm, (16, 1), 4),
    (block_spmm, (16, 16), None),
    (block_spmm, (16, 32), None),
]


def operands(block, run, dtype=torch.float64, transposed=True, rows=37, cols=50):
    n, m = run or block[0], block[1]
    kept = (torch.rand(-(-rows // n), -(-cols // m)) < 0.4).repeat_interleave(n, 0).repeat_interleave(m, 1)
    weight = (torch.randn(rows, cols) * kept[:rows, :cols]).to(dtype)
    return weight, pack_blocks(weight, block, run=run, transposed=transposed), torch.randn(rows, dtype=dtype)


@pytest.mark.parametrize(("product", "block", "run"), CASES)
def test_equals_the_dense_product(product, block, run):
    weight, matrix, bias = operands(block, run)
    x = torch.randn(2, 3, 50, dtype=torch.float64)
    assert torch.equal(product(x, matrix, bias), linear(x, weight, bias))
    assert torch.equal(product(x, matrix), linear(x, weight))
    for name, function in ACTIVATIONS.items():
        assert torch.equal(product(x, matrix, bias, name), function(linear(x, weight, bias)))


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize(("product", "block", "run"), CASES)
def test_gradients(product, block, run, transposed):
    _, matrix, bias = operands(block, run, transposed=transposed)
    leaves = torch.randn(5, 50, dtype=torch.float64), matrix.values, bias

    def function(x, values, bias):
        filler = (matrix.columns < 0)[:, None, None]
        inside = values.where(~filler, 0)  # what fills up gets no gradient, and is never read
        return product(x, matrix._replace(values=inside), bias, "gelu")

    assert torch.autograd.gradcheck(function, [leaf.requires_grad_() for leaf in leaves], fast_mode=True)


def test_values_get_their_gradient_only_where_they_are_stored():
    weight, matrix, _ = operands((8, 1), None)
    x, grad = torch.randn(5, 50, dtype=torch.float64), torch.randn(5, 37, dtype=torch.float64)
    values = matrix.values.requires_grad_()
    (found,) = torch.autograd.grad(vector_spmm(x, matrix._replace(values=values)), values, grad)
    full = grad.t() @ x
    stored = unpack_blocks(matrix._replace(values=torch.ones_like(values))) != 0
    assert torch.equal(unpack_blocks(matrix._replace(values=found)), full.where(stored, 0))
    assert not found[matrix.columns < 0].any()
    assert int(stored.sum()) < weight.numel()


def test_no_second_derivative():
    _, matrix, _ = operands((4, 1), None)
    x = torch.randn(2, 50, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(vector_spmm(x, matrix).square().sum(), x, retain_graph=True)
    assert first.shape == x.shape
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(vector_spmm(x, matrix).square().sum(), x, create_graph=True)
    torch.autograd.grad(vector_spmm(x, matrix).sum(), x, create_graph=True)  # that of what is constant
    matrix.values.requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):  # as a penalty of gradients would ask for
        torch.autograd.grad(vector_spmm(x, matrix).sum(), x, create_graph=True)


def test_an_index_of_other_integers_is_not_read_by_a_kernel():
    _, matrix, _ = operands((4, 1), None)
    x = torch.randn(2, 50)
    matrix = matrix._replace(values=matrix.values.detach().float())
    for name in ("pointers", "order"):
        wide = matrix._replace(**{name: getattr(matrix, name).long()})
        torch.testing.assert_close(vector_spmm(x, wide), vector_spmm(x, matrix))


@pytest.mark.parametrize(("rows", "cols", "tokens"), [(0, 8, 2), (8, 0, 2), (8, 8, 0)])
def test_nothing(rows, cols, tokens):
    matrix = pack_blocks(torch.zeros(rows, cols), (4, 1))
    x = torch.randn(tokens, cols, requires_grad=True)
    y = vector_spmm(x, matrix, torch.ones(rows))
    assert torch.equal(y, torch.ones(tokens, rows))
    y.sum().backward()
    assert torch.equal(x.grad, torch.zeros(tokens, cols))


@pytest.mark.parametrize("product", [vector_spmm, block_spmm])
def test_compiles_whole(product):
    block = (8, 1) if product is vector_spmm else (16, 16)
    _, matrix, bias = operands(block, None, torch.float32)

    def train(x, values, bias):
        return gelu(product(x, matrix._replace(values=values), bias, "relu"))

    leaves = [t.requires_grad_() for t in (torch.randn(3, 50), matrix.values, bias)]
    results = []
    for function in (train, torch.compile(train, fullgraph=True, backend="aot_eager")):
        y = function(*leaves)
        results.append((y, *torch.autograd.grad(y.sum(), leaves)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_misuse():
    _, vectors, bias = operands((4, 1), None)
    _, blocks, _ = operands((16, 16), None)
    x = torch.randn(2, 50, dtype=torch.float64)
    for call, error, message in [
        (lambda: vector_spmm(x, blocks), ValueError, "use block_spmm"),
        (lambda: block_spmm(x, vectors), ValueError, "use vector_spmm"),
        (
            lambda: vector_spmm(x[:, 1:], vectors),
            ValueError,
            r"x: want \[..., 50\] for a matrix \[37, 50\], got \[2, 49\]",
        ),
        (lambda: vector_spmm(x, vectors, bias[1:]), ValueError, r"bias: want \[37\]"),
        (
            lambda: vector_spmm(x.float(), vectors),
            TypeError,
            "x: want torch.float64 like the values, got torch.float32",
        ),
        (lambda: vector_spmm(x, vectors, bias.half()), TypeError, "bias: want torch.float64"),
        (
            lambda: vector_spmm(x, vectors, bias, "silu"),
            ValueError,
            "activation: want none, relu, gelu, gelu_tanh, got 'silu'",
        ),
        (lambda: vector_spmm(x.to("meta"), vectors), ValueError, "values: want all on meta like x, got cpu"),
    ]:
        with pytest.raises(error, match=message):
            call()

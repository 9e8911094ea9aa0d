"""The kernels of packed blocks against fp64, next to torch's own product of the same dtype; what they leave is poisoned."""

import contextlib

import pytest
import torch
from torch.nn.functional import linear

from trisparse.kernels.gpu.block_spmm import block_spmm as multiply_blocks
from trisparse.kernels.gpu.sddmm import sddmm
from trisparse.kernels.gpu.spmm_t import spmm_t
from trisparse.kernels.gpu.vector_spmm import shares_of
from trisparse.kernels.gpu.vector_spmm import vector_spmm as multiply_vectors
from trisparse.sparse_ops import block_spmm, pack_blocks, unpack_blocks, vector_spmm
from trisparse.sparse_ops.activations import ACTIVATIONS
from trisparse.sparse_ops.blocks.sddmm import sddmm_reference

pytestmark = pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")  # NumPy, under the interpreter

VECTORS = [(4, 1, 4), (4, 1, 1), (8, 1, 8), (8, 1, 4), (16, 1, 16), (16, 1, 1), (32, 1, 32), (32, 1, 8)]
BLOCKS = [(16, 16, 16), (32, 32, 32), (64, 64, 64), (128, 128, 128), (16, 64, 16), (64, 16, 64)]


def matrix_of(weight, block, run=None):
    """Packed, on the device of the weight."""
    return pack_blocks(weight.cpu(), block, run=run, transposed=True).to(lambda part: part.to(weight.device))


@pytest.fixture
def made(device):
    """A function from (n, m, run) to a weight with empty rows, in a shape that no side divides, and the weight packed."""

    def make(n, m, run):
        rows, cols = max(2 * n + 6, 38), max(2 * m + 36, 100 if m == 1 else 200)
        kept = torch.rand(-(-rows // run), -(-cols // m)) < 0.4
        kept[: n // run] = False
        kept[-1, -1] = True
        kept = kept.repeat_interleave(run, 0).repeat_interleave(m, 1)[:rows, :cols]
        weight = (torch.randn(rows, cols) * kept).half().to(device)
        return weight, matrix_of(weight, (n, m), run)

    return make


@contextlib.contextmanager
def poison():
    """Memory that torch does not initialize is NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def product(x, matrix, bias=None, activation="none"):
    with poison():
        return (multiply_vectors if matrix.block[1] == 1 else multiply_blocks)(x, matrix, bias, activation)


def as_exact(ours, theirs, want):
    assert ours.dtype == theirs.dtype
    assert (ours - want).abs().max() <= 2 * (theirs - want).abs().max()


@pytest.mark.parametrize("tokens", [1, 3, 8, 9, 140])
@pytest.mark.parametrize("block", VECTORS + BLOCKS, ids=str)
def test_a_product_is_as_exact_as_torchs(made, block, tokens):
    weight, matrix = made(*block)
    x = torch.randn(tokens, weight.shape[1], device=weight.device).half()
    as_exact(product(x, matrix), linear(x, weight), linear(x.double(), weight.double()))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("block", "tokens"), [((8, 1, 8), 2), ((8, 1, 8), 20), ((32, 32, 32), 20)], ids=str)
def test_bias_and_activation(made, block, tokens, activation):
    weight, matrix = made(*block)
    x, bias = (
        torch.randn(*size, device=weight.device).half() for size in ((tokens, weight.shape[1]), weight.shape[:1])
    )
    act = ACTIVATIONS[activation]
    want = act(linear(x.double(), weight.double(), bias.double()))
    as_exact(product(x, matrix, bias, activation), act(linear(x, weight, bias)), want)


@pytest.mark.parametrize("tokens", [3, 70])
@pytest.mark.parametrize("block", VECTORS + BLOCKS, ids=str)
def test_gradients_are_as_exact_as_torchs(made, block, tokens):
    weight, matrix = made(*block)
    x, grad = (torch.randn(tokens, size, device=weight.device).half() for size in reversed(weight.shape))
    with poison():
        ours = spmm_t(grad, matrix), sddmm(grad, x, matrix)
    as_exact(ours[0], grad @ weight, grad.double() @ weight.double())
    want = sddmm_reference(grad.double(), x.double(), *matrix)
    as_exact(ours[1], sddmm_reference(grad, x, *matrix), want)
    assert not ours[1][want == 0].any()  # what fills up a group stays zero


@pytest.mark.parametrize("rows", [32, 48])
@pytest.mark.parametrize("tokens", [1, 3])
def test_shares_are_added_up(device, count_launches, rows, tokens):
    weight = torch.randn(rows, 1300, device=device).half()
    weight[:16, 20:] = 0  # less than one share
    weight[32:] = 0
    matrix, bias = matrix_of(weight, (16, 1)), torch.randn(rows, device=device).half()
    x = torch.randn(tokens, 1300, device=device).half()
    want = linear(x.double(), weight.double(), bias.double()).relu()
    as_exact(product(x, matrix, bias, "relu"), linear(x, weight, bias).relu(), want)
    assert count_launches == ["multiply_vectors_few", "add_shares"]


def test_shares_fill_the_device_and_no_more():
    assert shares_of(1, 255, 132) == 1
    assert shares_of(1, 10_000, 132) == 39
    assert shares_of(192, 10_000, 132) == 3
    assert shares_of(10_000, 10_000, 132) == 1


@pytest.mark.parametrize("tokens", [2, 20])
@pytest.mark.parametrize("block", [(4, 1, 4), (16, 1, 4), (16, 16, 16), (64, 64, 64)], ids=str)
def test_infinities_stay_where_they_belong(made, block, tokens):
    weight, _ = made(*block)
    n, m, run = block
    weight[n:, :m] = 0
    weight[:n, :m] = 1  # only the first group reads the first columns
    matrix = matrix_of(weight, (n, m), run)
    x, grad = (torch.randn(tokens, size, device=weight.device).half() for size in reversed(weight.shape))
    want, slots = product(x, matrix), sddmm(grad, x, matrix)
    x[:, 0] = torch.inf
    assert torch.equal(product(x, matrix)[:, n:], want[:, n:])
    stored = (matrix.columns != 0).to(weight.device)
    assert torch.equal(sddmm(grad, x, matrix)[stored], slots[stored])
    x[:, 0] = 0
    values = matrix.values.clone()
    values[~stored] = torch.inf
    assert torch.equal(product(x, matrix._replace(values=values))[:, n:], want[:, n:])


def test_more_columns_than_int16_counts(device):
    weight = torch.zeros(8, 33_000, device=device).half()
    weight[:, ::2000] = torch.randn(8, 17, device=device).half()
    weight[:, -1] = 1
    matrix = matrix_of(weight, (8, 1))
    assert matrix.columns.dtype == torch.int32
    for tokens in (1, 9):
        x, grad = (torch.randn(tokens, size, device=device).half() for size in (33_000, 8))
        as_exact(product(x, matrix), linear(x, weight), linear(x.double(), weight.double()))
        torch.testing.assert_close(sddmm(grad, x, matrix), sddmm_reference(grad, x, *matrix))


@pytest.mark.parametrize("block", [(4, 1), (16, 16)], ids=str)
@pytest.mark.parametrize(("tokens", "rows", "cols"), [(0, 20, 40), (3, 0, 40), (20, 20, 0), (3, 20, 40), (20, 20, 40)])
def test_nothing_stored_or_nothing_to_multiply(kernels_on_cpu, block, tokens, rows, cols):
    matrix = matrix_of(torch.zeros(rows, cols).half(), block)
    values = matrix.values.clone().requires_grad_()
    x, bias = (torch.randn(*size).half().requires_grad_() for size in ((tokens, cols), (rows,)))
    grad = torch.randn(tokens, rows).half()
    with poison():
        y = (vector_spmm if block[1] == 1 else block_spmm)(x, matrix._replace(values=values), bias, "relu")
        grads = torch.autograd.grad(y, (x, values, bias), grad)
    assert torch.equal(y, bias.relu().expand(tokens, rows))
    assert [g.shape for g in grads] == [x.shape, values.shape, bias.shape]
    assert not grads[0].any()


@pytest.mark.parametrize("transposed", [True, False], ids=["both ways", "one way"])
@pytest.mark.parametrize("tokens", [5, 21, 70])
@pytest.mark.parametrize("block", [(8, 1, 4), (32, 16, 32)], ids=str)
def test_a_training_step_on_kernels(kernels_on_cpu, count_launches, made, block, tokens, transposed):
    weight, matrix = made(*block)
    if not transposed:
        matrix = matrix._replace(slots_t=matrix.order[:0], groups_t=matrix.order[:0], pointers_t=matrix.order[:0])
    values = matrix.values.clone().requires_grad_()
    bias, grad = (torch.randn(*size).half() for size in (weight.shape[:1], (tokens, weight.shape[0])))
    x = torch.randn(tokens, 2 * weight.shape[1]).half()[:, ::2].requires_grad_()
    multiply = vector_spmm if block[1] == 1 else block_spmm
    inputs = x, values, bias.requires_grad_()
    y = multiply(x[None], matrix._replace(values=values), bias, "gelu")[0]
    ours = y, *torch.autograd.grad(y, inputs, grad)
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    want = ACTIVATIONS["gelu"](linear(*exact))
    theirs = want, *torch.autograd.grad(want, exact, grad.double())
    kept = unpack_blocks(matrix._replace(values=torch.ones_like(values)))
    for a, b in zip(ours, theirs, strict=True):
        if a.shape == values.shape:
            a, b = unpack_blocks(matrix._replace(values=a)), b * kept
        torch.testing.assert_close(a.double(), b, rtol=4e-3, atol=2e-2)
    kind = "vectors" if block[1] == 1 else "blocks"
    forward = f"multiply_{kind}{'_few' if kind == 'vectors' and tokens == 5 else ''}"
    backward = [f"multiply_{kind}{'_t' if kind == 'vectors' else ''}"] if transposed else []
    backward = [] if kind == "vectors" and tokens == 70 else [*backward, f"gradient_of_{kind}"]  # dense products
    assert count_launches == [forward, *backward]
    with torch.no_grad():
        torch.testing.assert_close(multiply(x, matrix, bias, "gelu"), y, rtol=4e-3, atol=2e-3)

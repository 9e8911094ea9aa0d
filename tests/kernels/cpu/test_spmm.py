"""The C++ products: under sanitizers over odd shapes, against fp64, the same on any number of threads."""

import pickle
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear

from trisparse.kernels.cpu.spmm import spmm
from trisparse.sparse_ops import LinearBlocks, block_spmm, pack_blocks, vector_spmm
from trisparse.sparse_ops.activations import ACTIVATIONS

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
BLOCKS = [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (32, 1), (16, 16), (32, 64)]


def operands(block, rows, cols, tokens, density=0.3, dtype=torch.float32, run=None):
    n, m = block
    kept = (torch.rand(-(-rows // n), -(-cols // m)) < density).repeat_interleave(n, 0).repeat_interleave(m, 1)
    weight = (torch.randn(rows, cols) * kept[:rows, :cols]).to(dtype)
    return torch.randn(tokens, cols).to(dtype), weight, pack_blocks(weight, block, run=run), torch.randn(rows).to(dtype)


def error(found, x, weight, bias, activation):
    want = ACTIVATIONS[activation](linear(x.double(), weight.double(), bias.double()))
    return float((found.double() - want).norm())


def test_sanitized_products_over_odd_shapes(run_sanitized):
    run_sanitized("spmm_check.cpp")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("tokens", [1, 4, 40, 200])
def test_no_less_exact_than_a_dense_product(block, tokens, dtype):
    x, weight, matrix, bias = operands(block, 100, 333, tokens, dtype=dtype)
    for activation, function in ACTIVATIONS.items():
        ours = error(spmm(x, matrix, bias, activation), x, weight, bias, activation)
        assert ours <= 2 * error(function(linear(x, weight, bias)), x, weight, bias, activation)


@settings(max_examples=60, deadline=None)
@given(
    block=st.sampled_from(BLOCKS), rows=st.integers(1, 70), cols=st.integers(1, 90), tokens=st.integers(0, 50),
    density=st.sampled_from([0.0, 0.1, 0.6, 1.0]), split=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_packing(block, rows, cols, tokens, density, split, seed):
    torch.manual_seed(seed)
    run = 1 if split and block[1] == 1 else None
    x, weight, matrix, bias = operands(block, rows, cols, tokens, density, run=run)
    found = spmm(x, matrix, bias, "none")
    torch.testing.assert_close(found, linear(x, weight, bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [1024, 1040, 1001])
def test_outputs_that_go_past_the_caches(rows):
    x, weight, matrix, bias = operands((4, 1), rows, 5, 8400)
    assert 8400 * rows * 4 > 32 << 20
    torch.testing.assert_close(spmm(x, matrix, bias, "relu"), linear(x, weight, bias).relu(), rtol=1e-4, atol=1e-4)


def test_what_the_kernel_does_not_read_is_left_to_the_operator():
    x, weight, matrix, bias = operands((4, 1), 8, 40_000, 5)
    assert matrix.columns.dtype == torch.int32
    assert spmm(x, matrix, bias, "none") is None
    torch.testing.assert_close(vector_spmm(x, matrix, bias), linear(x, weight, bias), rtol=1e-4, atol=1e-3)
    x, weight, matrix, bias = operands((4, 1), 8, 40, 5)
    layer = LinearBlocks.from_linear(torch.nn.Linear(40, 8), (4, 1)).eval()
    layer(x)
    layer.bias = torch.nn.Parameter(torch.zeros(7), requires_grad=False)
    with pytest.raises(ValueError, match=r"bias: want \[8\]"):
        layer(x)
    layer.bias = None
    with pytest.raises(ValueError, match=r"x: want \[..., 40\]"):
        layer(x[:, 1:])
    layer.columns[0] = 127
    with pytest.raises(ValueError, match="columns"):
        layer(x)


@pytest.mark.parametrize("tokens", [1, 20])
def test_a_layer_multiplies_with_the_weight_it_has_now(tokens):
    layer, other = (LinearBlocks.from_linear(torch.nn.Linear(40, 16), (4, 1)).eval() for _ in range(2))
    x, want = torch.randn(2, tokens, 40), []
    for source in (layer, other):
        want.append(source.to_linear()(x).detach())
    torch.testing.assert_close(layer(x), want[0])
    pickled = pickle.loads(pickle.dumps(layer))
    layer.load_state_dict(other.state_dict())
    torch.testing.assert_close(layer(x), want[1])
    layer.values.data = pickled.values.data
    layer.bias.copy_(pickled.bias)
    torch.testing.assert_close(layer(x), want[0])
    torch.testing.assert_close(pickled(x), want[0])
    layer.values.data = layer.values.data.repeat_interleave(2, 0)[::2]  # not contiguous
    torch.testing.assert_close(layer(x), want[0])
    layer.values.data.copy_(other.values)
    layer.columns.copy_(other.columns)
    layer.bias.copy_(other.bias)
    torch.testing.assert_close(layer(x), want[1])
    assert layer.to("meta")._direct == (None, None), "memory that the layer has left is not kept"
    torch.testing.assert_close(pickled.bfloat16()(x.bfloat16()).float(), want[0], rtol=0.05, atol=0.05)
    with torch.inference_mode():
        torch.testing.assert_close(other(x), want[1])


@pytest.mark.parametrize("tokens", [1, 20, 100])
def test_threads_do_not_change_a_bit(tokens):
    x, _, matrix, bias = operands((4, 1), 300, 200, tokens)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(spmm(x, matrix, bias, "gelu"))
    finally:
        torch.set_num_threads(threads)
    assert results[0].equal(results[1])
    assert results[0].equal(results[2])


def test_infinities_and_nan_go_where_a_dense_product_puts_them():
    x, weight, matrix, bias = operands((4, 1), 16, 40, 30)
    x[3, 5], x[4, 6], x[5, 0] = float("nan"), float("inf"), float("-inf")
    stored = weight.abs().sum(0) != 0  # a column that is not stored is not read
    x[:, ~stored] = x[:, ~stored].nan_to_num(0, 0, 0)
    kept = torch.stack([x[:, row != 0] @ row[row != 0] for row in weight], 1) + bias
    assert not kept.isfinite().all()
    torch.testing.assert_close(spmm(x, matrix, bias, "none"), kept, equal_nan=True)
    torch.testing.assert_close(spmm(x, matrix, bias, "relu"), kept.relu(), equal_nan=True)
    for activation, left in (("gelu", 0.0), ("gelu_tanh", 0.0)):  # torch's own are NaN at infinities
        want = ACTIVATIONS[activation](kept).where(kept.isfinite(), kept).masked_fill(kept == -torch.inf, left)
        torch.testing.assert_close(spmm(x, matrix, bias, activation), want, equal_nan=True)


def test_the_public_products_run_on_it(monkeypatch):
    x, _, matrix, bias = operands((4, 1), 16, 40, 5)
    found = vector_spmm(x, matrix, bias, "relu")
    assert found.equal(spmm(x, matrix, bias, "relu"))
    assert found.equal(torch.ops.trisparse.vector_spmm(x, *matrix, bias, "relu"))
    x, _, matrix, bias = operands((16, 16), 16, 40, 5)
    assert block_spmm(x.view(1, 5, 40), matrix, bias).equal(spmm(x, matrix, bias, "none")[None])
    layer = LinearBlocks.from_linear(torch.nn.Linear(40, 16), (4, 1))
    compiled = torch.compile(layer, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_take_the_plain_path(dtype):
    x, weight, matrix, bias = operands((4, 1), 16, 40, 5, dtype=dtype)
    assert spmm(x, matrix, bias, "none") is None
    assert vector_spmm(x, matrix, bias).equal(linear(x, weight, bias))

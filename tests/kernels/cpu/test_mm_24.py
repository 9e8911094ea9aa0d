"""The C++ 2:4 product: under sanitizers over odd shapes, against fp64, the same on any number of threads."""

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import linear

from trisparse.kernels.cpu.mm_24 import mm_24
from trisparse.sparse_ops import Linear24, nm_mask, pack_24
from trisparse.sparse_ops import mm_24 as product

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")


def operands(rows, cols, tokens, dtype=torch.float32):
    weight = torch.randn(rows, cols).to(dtype)
    mask = nm_mask(weight, 2, 4, magnitude=True)
    packed = pack_24(weight, "bitmask", mask=mask).packed
    return torch.randn(tokens, cols).to(dtype), weight * mask, packed, torch.randn(rows).to(dtype)


def test_sanitized_products_over_odd_shapes(run_sanitized):
    run_sanitized("mm_24_check.cpp")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 3, 9, 16, 40, 200])
@pytest.mark.parametrize(("rows", "cols"), [(100, 332), (33, 1600)])
def test_no_less_exact_than_a_dense_product(rows, cols, tokens, dtype):
    x, weight, packed, bias = operands(rows, cols, tokens, dtype)
    want = linear(x.double(), weight.double(), bias.double())
    found = mm_24(x, packed, bias, rows, cols, "bitmask")
    assert (found - want).norm() <= 2 * (linear(x, weight, bias) - want).norm()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 40), st.integers(0, 50), st.booleans(), st.integers(0, 99))
def test_any_packing(rows, quads, tokens, has_bias, seed):
    torch.manual_seed(seed)
    x, weight, packed, bias = operands(rows, 4 * quads, tokens)
    bias = bias if has_bias else None
    found = mm_24(x, packed, bias, rows, 4 * quads, "bitmask")
    torch.testing.assert_close(found, linear(x, weight, bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 20, 100])
def test_threads_do_not_change_a_bit(tokens):
    x, _, packed, bias = operands(300, 200, tokens)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(mm_24(x, packed, bias, 300, 200, "bitmask"))
    finally:
        torch.set_num_threads(threads)
    assert results[0].equal(results[1])
    assert results[0].equal(results[2])


def test_layers_and_operators_run_on_it_and_other_layouts_do_not():
    dense = nn.Linear(64, 32)
    mask = nm_mask(dense.weight, 2, 4, magnitude=True)
    dense.weight.data *= mask
    layer = Linear24.from_linear(dense, mask, layout="bitmask").eval()
    x = torch.randn(2, 5, 64)
    with torch.no_grad():
        want = mm_24(x, layer.matrix.packed, layer.bias, 32, 64, "bitmask")
        assert layer(x).equal(want)
        assert product(x, layer.matrix, layer.bias).equal(want)
        assert layer._direct[1] is not None
        torch.testing.assert_close(want, dense(x))
        torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), want)
    other = Linear24.from_linear(dense, mask, layout="cslt_sm90").eval()
    assert mm_24(x, other.matrix.packed, None, 32, 64, "cslt_sm90") is None
    torch.testing.assert_close(other(x), dense(x))
    for dtype in (torch.float64, torch.float16):
        torch.testing.assert_close(layer.to(dtype)(x.to(dtype)), dense.to(dtype)(x.to(dtype)))

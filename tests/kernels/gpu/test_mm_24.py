"""The kernel for few tokens against fp64, next to torch's own product of the same dtype."""

import pytest
import torch
from torch.nn.functional import linear

from trisparse.kernels.gpu.mm_24 import COLS, mm_24, shares
from trisparse.kernels.layouts_24 import QUADS
from trisparse.sparse_ops import pack_24, unpack_24


@pytest.mark.parametrize("layout", QUADS)
@pytest.mark.parametrize("shape", [(132, 196), (72, 1100)])
@pytest.mark.parametrize("tokens", [1, 50])
def test_as_exact_as_torch(device, layout, shape, tokens):
    x, bias = torch.randn(tokens, shape[1], device=device).half(), torch.randn(shape[0], device=device).half()
    matrix = pack_24(torch.randn(shape, device=device).half(), layout)
    dense = unpack_24(matrix)
    for b in (bias, None):
        y = mm_24(x, matrix.packed, b, *shape, layout)
        want = linear(x.double(), dense.double(), None if b is None else b.double())
        error, theirs = (y - want).abs().max(), (linear(x, dense, b) - want).abs().max()
        assert y.dtype == x.dtype
        assert error <= 2 * theirs


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")  # NumPy, under the interpreter
def test_pruned_places_do_not_read_infinities_of_other_tokens(device):
    x = torch.randn(3, 64, device=device).half()
    matrix = pack_24(torch.randn(64, 64, device=device).half(), "cslt_sm90")
    want = mm_24(x, matrix.packed, None, 64, 64, "cslt_sm90")
    x[1] = torch.inf
    got = mm_24(x, matrix.packed, None, 64, 64, "cslt_sm90")
    assert torch.equal(got[[0, 2]], want[[0, 2]])


def test_nothing(device):
    matrix = pack_24(torch.randn(64, 64, device=device).half(), "cslt_sm90")
    assert mm_24(torch.empty(0, 64, device=device).half(), matrix.packed, None, 64, 64, "cslt_sm90").shape == (0, 64)


def test_shares_cover_all_columns():
    for rows in (64, 768, 4096, 16384):
        for cols in (64, 128, 768, 11008):
            count, steps = shares(rows, cols, 132)
            assert count * steps * COLS >= cols > (count - 1) * steps * COLS

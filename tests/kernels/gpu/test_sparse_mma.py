"""Where every lane of a product on sparse tensor cores finds its numbers, in the interpreter: what PTX says of them."""

import ctypes

import numpy as np
import pytest
import torch
import triton.language as tl
from torch.nn.functional import linear
from triton.runtime.interpreter import TensorHandle

from trisparse.kernels.gpu import mm_24_sparse as kernels
from trisparse.kernels.gpu import sparse_mma
from trisparse.kernels.gpu.mm_24_sparse import Config, config_for, mm_24_sparse
from trisparse.kernels.layouts_24 import QUADS
from trisparse.sparse_ops import pack_24, unpack_24

G, T = np.arange(32) // 4, np.arange(32) % 4


def tensors(numbers, dtype):
    return tuple(tl.tensor(TensorHandle(part, dtype), tl.block_type(dtype, [len(part)])) for part in numbers)


def load_16_bytes(address, inside):
    """A load for every address."""
    found = np.zeros((4, len(address.handle.data)), np.int32)
    for i in inside.handle.data.nonzero()[0]:
        where = int(address.handle.data[i])
        assert where % 16 == 0
        found[:, i] = np.frombuffer(ctypes.string_at(where, 16), np.int32)
    return tensors(found, tl.int32)


def mma_sp(*fragments):
    """mma.sp.m16n8k32 of all warps, by the figures of the PTX ISA, 9.7.14.6: A and B as pairs, metadata, sums."""
    *parts, selector, bf16 = fragments
    assert not bf16  # the interpreter multiplies fp16
    data = [part.handle.data.reshape(-1, 32) for part in parts]
    a, b = (
        [np.ascontiguousarray(part).view(np.float16).reshape(-1, 32, 2) for part in data[i : i + 4]] for i in (0, 4)
    )
    e, sums = data[8].view(np.uint32), np.stack(data[9:], -1).copy()
    for warp in range(len(e)):
        w, x = np.zeros((16, 32)), np.zeros((32, 8))
        for i in range(4):
            row, slot = G + i % 2 * 8, T + i // 2 * 4
            word = e[warp, G * 4 + selector * 2 + slot // 4] >> (16 * (i % 2) + 4 * T).astype(np.uint32)
            first, second = word & 3, word >> np.uint32(2) & 3
            assert (first < second).all()  # metadata is in order
            w[row, 4 * slot + first], w[row, 4 * slot + second] = a[i][warp].T
            x[8 * i + 2 * T, G], x[8 * i + 2 * T + 1, G] = b[i][warp].T
        y = w @ x
        for i in range(4):
            sums[warp, :, i] += y[G + i // 2 * 8, 2 * T + i % 2]
    return tensors(np.moveaxis(sums, -1, 0).reshape(4, -1).astype(np.float32), tl.float32)


@pytest.fixture
def cores(monkeypatch):
    """Both functions that are NVIDIA's, as the interpreter can run them."""
    if torch.cuda.is_available():
        pytest.skip("a GPU runs the kernel by itself")
    monkeypatch.setattr(kernels, "load_16_bytes", load_16_bytes)
    monkeypatch.setattr(sparse_mma, "mma_sp", mma_sp)


CONFIGS = [
    Config(1, 2, 1, 2),
    Config(2, 1, 4, 1, shares=2),
    Config(2, 2, 1, 1, is_arranged=True),
    Config(1, 1, 2, 2, shares=2, is_arranged=True),
]
CASES = [("cslt_sm90", config) for config in CONFIGS] + [
    (layout, CONFIGS[1]) for layout in sorted({*QUADS} - {"cslt_sm90"})
]


@pytest.mark.parametrize(("layout", "config"), CASES, ids=str)
@pytest.mark.parametrize(("tokens", "shape"), [(1, (72, 196)), (11, (64, 320))])
def test_every_number_is_where_it_belongs(cores, layout, config, tokens, shape):
    x, bias = torch.randn(tokens, shape[1]).half(), torch.randn(shape[0]).half()
    matrix = pack_24(torch.randn(shape).half(), layout)
    dense = unpack_24(matrix)
    for b in (bias, None):
        y = mm_24_sparse(x, matrix.packed, b, *shape, layout, config)
        want = linear(x.double(), dense.double(), None if b is None else b.double())
        assert y.dtype == x.dtype
        assert (y - want).abs().max() <= 2 * (linear(x, dense, b) - want).abs().max()


def test_sums_do_not_depend_on_what_a_token_beside_them_is(cores):
    x, config = torch.randn(3, 64).half(), Config(1, 1, 1, 2)
    matrix = pack_24(torch.randn(64, 64).half(), "cslt_sm90")
    want = mm_24_sparse(x, matrix.packed, None, 64, 64, "cslt_sm90", config)
    x[1] = 100
    got = mm_24_sparse(x, matrix.packed, None, 64, 64, "cslt_sm90", config)
    assert torch.equal(got[[0, 2]], want[[0, 2]])


@pytest.mark.parametrize("tokens", [1, 8, 9, 16])
def test_every_configuration_divides_a_padded_matrix(tokens):
    for rows in (64, 768, 4096, 28672):
        for cols in (64, 768, 4096, 28672):
            config = config_for(tokens, rows, cols)
            assert 64 % (16 * config.high) == 0
            assert config.down * config.across <= 16

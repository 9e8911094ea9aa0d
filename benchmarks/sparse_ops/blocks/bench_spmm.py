"""vector_spmm and block_spmm against cuBLAS and torch's own sparse products; forward, and a training step.

Bytes are those of packed W, x and y. `crossover.py` has the whole map; this file has the rivals.
"""

import pytest
import torch
from torch.nn.functional import linear

from trisparse.sparse_ops import LinearBlocks, block_spmm, layout_24, mm_24, nm_mask, pack_24, pack_blocks, vector_spmm

SHAPES = {"bert-mini": (1024, 256), "bert-base": (3072, 768), "llama-7b": (4096, 4096)}
BLOCKS = [((4, 1), 0.9), ((16, 1), 0.9), ((32, 1), 0.8), ((32, 32), 0.9), ((64, 64), 0.8)]
HERE = "cuda" if torch.cuda.is_available() else "cpu"


def cases(tokens):
    """Name, tokens, block and sparsity; a CPU gets the smallest only."""
    names, tokens = (list(SHAPES), tokens) if HERE == "cuda" else (["bert-mini"], tokens[:1])
    return [(name, count, *block) for name in names for count in tokens for block in BLOCKS]


@pytest.fixture(autouse=True)
def small_alone(name, is_small):
    if is_small and name != "bert-mini":
        pytest.skip("only the smallest")


def pruned(shape, block, sparsity, dtype, device):
    (rows, cols), (n, m) = shape, block
    kept = torch.rand(rows // n, cols // m, device=device) >= sparsity
    return torch.randn(shape, device=device, dtype=dtype) * kept.repeat_interleave(n, 0).repeat_interleave(m, 1)


def rivals_of(weight, x, block):
    """What torch offers for the same product."""
    found = {"dense": lambda: linear(x, weight)}
    csr, x_t = weight.to_sparse_csr(), x.t().contiguous()
    found["torch.sparse CSR"] = lambda: csr @ x_t
    if block[0] == block[1] and weight.is_cuda:
        from torch.sparse._triton_ops import bsr_dense_addmm

        bsr, zeros = weight.to_sparse_bsr(block), x.new_zeros(len(weight), len(x))
        found["torch.sparse BSR"] = lambda: linear(x, bsr)
        found["bsr_dense_addmm"] = lambda: bsr_dense_addmm(zeros, bsr, x_t, beta=0)
    if weight.is_cuda:
        half = weight.where(nm_mask(weight, 2, 4, magnitude=True), 0)
        packed = pack_24(half, layout_24(weight.device))
        found["2:4, another weight"] = lambda: mm_24(x, packed)
    return found


@pytest.mark.parametrize(("name", "tokens", "block", "sparsity"), cases([16, 1, 256, 4096]))
def test_product(compare, device, name, tokens, block, sparsity):
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    weight = pruned(SHAPES[name], block, sparsity, dtype, device)
    x = torch.randn(tokens, weight.shape[1], device=device, dtype=dtype)
    matrix, product = pack_blocks(weight, block), vector_spmm if block[1] == 1 else block_spmm

    def ours():
        return product(x, matrix)

    def check():
        want = x.double() @ weight.double().t()
        assert (ours() - want).abs().max() <= 2 * (linear(x, weight) - want).abs().max() + 1e-6

    nbytes = matrix.nbytes + (x.numel() + tokens * len(weight)) * dtype.itemsize
    name = f"{name} {block[0]}x{block[1]} {sparsity} T={tokens}"
    compare(product.__name__, name, ours, rivals_of(weight, x, block), nbytes, check)


@pytest.mark.parametrize(
    ("name", "tokens", "block", "sparsity"), cases([64, 256, 4096]) if HERE == "cuda" else cases([16])
)
def test_training_step(compare, device, name, tokens, block, sparsity):
    """Forward and all gradients, the weight's only where it is stored."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    dense = torch.nn.Linear(*reversed(SHAPES[name]), device=device, dtype=dtype)
    dense.weight.data = pruned(SHAPES[name], block, sparsity, dtype, device)
    packed = LinearBlocks.from_linear(dense, block, transposed=True).requires_grad_()
    x = torch.randn(tokens, dense.in_features, device=device, dtype=dtype, requires_grad=True)
    grad = torch.randn(tokens, dense.out_features, device=device, dtype=dtype)

    def step(layer):
        y = layer(x)
        return y, *torch.autograd.grad(y, (x, *layer.parameters()), grad)

    def check():
        (y, dx, *_), (want, want_dx, *_) = step(packed), step(dense)
        for a, b in ((y, want), (dx, want_dx)):
            assert (a - b).abs().max() <= 0.02 * b.abs().max()

    nbytes = packed.matrix.nbytes * 3 + tokens * sum(SHAPES[name]) * 3 * dtype.itemsize
    name = f"{name} {block[0]}x{block[1]} {sparsity} T={tokens}"
    compare("spmm training step", name, lambda: step(packed), {"dense": lambda: step(dense)}, nbytes, check)

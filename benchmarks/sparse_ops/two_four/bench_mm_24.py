"""mm_24 against cuBLAS and torch's own 2:4 tensors, 1 to 16384 tokens.

Bytes are those of packed W, x and y. The rows say which is faster; with few tokens bytes decide, with many
multiplications do.
"""

import pytest
import torch
from torch.nn.functional import linear

from trisparse.sparse_ops import Linear24Train, layout_24, mm_24, pack_24, unpack_24
from trisparse.sparse_ops.two_four.libraries_24 import library_for

SHAPES = {
    "bert-mini": [(1024, 256)],
    "bert-base": [(768, 768), (3072, 768), (768, 3072)],
    "bert-large": [(4096, 1024), (1024, 4096)],
    "llama-7b": [(4096, 4096), (11008, 4096), (4096, 11008)],
    "llama-70b": [(28672, 8192), (8192, 8192)],
}
TOKENS = [1, 16, 64, 256, 1024, 4096, 16384]


HERE = "cuda" if torch.cuda.is_available() else "cpu"


def cases(tokens):
    """Model, shape, tokens; a CPU gets the smallest only."""
    names, tokens = (list(SHAPES), tokens) if HERE == "cuda" else (["bert-mini"], [16])
    return [(name, shape, count) for name in names for shape in SHAPES[name] for count in tokens]


@pytest.fixture(autouse=True)
def small_alone(name, tokens, is_small):
    if is_small and (name != "bert-mini" or tokens > 4096):
        pytest.skip("only the smallest")


@pytest.mark.parametrize(("name", "shape", "tokens"), cases(TOKENS))
def test_mm_24(compare, device, name, shape, tokens):
    rows, cols = shape
    layout, library = layout_24(device), library_for(device)
    weight, x = torch.randn(shape, device=device).bfloat16(), torch.randn(tokens, cols, device=device).bfloat16()
    matrix = pack_24(weight, layout)
    dense = unpack_24(matrix)

    def ours():
        return mm_24(x, matrix)

    def check():
        want = x.double() @ dense.double().t()
        assert (ours() - want).abs().max() <= 2 * (linear(x, dense) - want).abs().max()

    rivals = {"dense": lambda: linear(x, dense)}
    if library is not None:
        torchs = torch.sparse.to_sparse_semi_structured(dense)
        rivals["torch semi-structured"] = lambda: linear(x, torchs)
    nbytes = matrix.packed.numel() * 2 + x.numel() * 2 + tokens * rows * 2
    compare("mm_24", f"{name} {rows}x{cols} T={tokens}", ours, rivals, nbytes, check)


@pytest.mark.parametrize(("name", "shape", "tokens"), cases([4096]))
def test_training_step(compare, device, name, shape, tokens):
    """Forward, which packs W both ways, and both gradients."""
    rows, cols = shape
    layer = torch.nn.Linear(cols, rows, bias=False, device=device, dtype=torch.bfloat16)
    train = Linear24Train.from_linear(layer, masked=False)
    x = torch.randn(tokens, cols, device=device, dtype=torch.bfloat16, requires_grad=True)
    grad = torch.randn(tokens, rows, device=device, dtype=torch.bfloat16)
    dense = layer.weight.detach().where(train.mask(), 0).requires_grad_()

    def ours():
        y = train(x)
        return y, *torch.autograd.grad(y, (x, layer.weight), grad)

    def theirs():
        y = linear(x, dense)
        return y, *torch.autograd.grad(y, (x, dense), grad)

    def check():
        for a, b in zip(ours(), theirs(), strict=True):
            torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2 * float(b.detach().abs().max()))

    nbytes = rows * cols * 2 * 4 + tokens * (rows + cols) * 2 * 3
    compare("training step", f"{name} {rows}x{cols} T={tokens}", ours, {"dense": theirs}, nbytes, check)

"""nm_mask_2d on one weight. Bytes a weight: the weight read, a bool written.

The rivals: all 90 patterns by one matmul and argmax, as apex's ASP does it, and torch's own tile operator,
which packs as well, is greedy and does not keep the optimum.
"""

import itertools

import pytest
import torch

from trisparse.sparse_ops import nm_mask_2d
from trisparse.sparse_ops.choosing.nm_mask_2d import nm_mask_2d_reference

SHAPES = {"bert-mini": (1024, 256), "bert-base": (3072, 768), "bert-large": (4096, 1024), "llama-7b": (11008, 4096)}


def patterns(device, dtype):
    rows = [[c in pair for c in range(4)] for pair in itertools.combinations(range(4), 2)]
    every = torch.tensor(list(itertools.product(rows, repeat=4)), device=device)  # [1296, 4, 4]
    return every[(every.sum(1) == 2).all(1)].view(-1, 16).to(dtype)


@pytest.mark.parametrize("name", SHAPES)
def test_nm_mask_2d(compare, device, is_small, name):
    if is_small and name != "bert-mini":
        pytest.skip("only the smallest")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    weight = torch.randn(SHAPES[name], device=device).to(dtype)
    rows, cols = weight.shape
    every = patterns(device, dtype)

    def matmul_argmax():
        tiles = weight.abs().view(rows // 4, 4, cols // 4, 4).transpose(1, 2).reshape(-1, 16)
        best = every[(tiles @ every.t()).argmax(1)].bool()
        return best.view(rows // 4, cols // 4, 4, 4).transpose(1, 2).reshape(rows, cols)

    rivals = {"90 patterns, matmul + argmax": matmul_argmax}
    if device.type == "cuda":
        rivals["torch tile operator, greedy"] = lambda: torch._sparse_semi_structured_tile(
            weight, "largest_abs_values_greedy", True
        )

    def check():
        assert torch.equal(nm_mask_2d(weight), nm_mask_2d_reference(weight))

    nbytes = weight.numel() * (dtype.itemsize + 1)
    compare("nm_mask_2d", name, lambda: nm_mask_2d(weight), rivals, nbytes, check)

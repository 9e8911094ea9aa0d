"""nm_mask on the magnitudes of one weight. Bytes a weight: the weight read, a bool written."""

import pytest
import torch

from trisparse.sparse_ops import nm_mask

SHAPES = {"bert-mini": (1024, 256), "bert-base": (3072, 768), "bert-large": (4096, 1024), "llama-7b": (11008, 4096)}


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (16, 32)])
@pytest.mark.parametrize("name", SHAPES)
def test_nm_mask(compare, device, is_small, name, n, m):
    if is_small and name != "bert-mini":
        pytest.skip("only the smallest")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    weight = torch.randn(SHAPES[name], device=device).to(dtype)

    def ours():
        return nm_mask(weight, n, m, magnitude=True)

    def topk():
        groups = weight.abs().view(-1, m)
        best = groups.topk(n, 1, sorted=False).indices
        return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, best, True).view(weight.shape)

    def check():
        groups = weight.abs().view(-1, m)
        best = torch.sort(groups, dim=1, descending=True, stable=True).indices[:, :n]
        want = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, best, True).view(weight.shape)
        assert torch.equal(ours(), want)

    rivals = {"topk + scatter": topk}
    if device.type == "cuda":
        rivals["torch.compile of topk"] = torch.compile(topk)
    compare("nm_mask", f"{name} {n}:{m}", ours, rivals, weight.numel() * (dtype.itemsize + 1), check)

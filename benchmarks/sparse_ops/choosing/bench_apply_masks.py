"""apply_masks: the masked write of 4x1 units and of single weights.

Bytes a weight for w bytes a value: the weight read and written, the unit's mask read.
"""

import pytest
import torch

from trisparse.sparse_ops import Plan, apply_masks


@pytest.mark.parametrize("n", [4, 1], ids=["4x1", "1x1"])
def test_apply_masks(compare, model, device, n):
    name, shapes = model
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    weights = [torch.randn(shape, device=device).to(dtype) for shape in shapes]
    masks = [torch.rand(rows // n, cols, device=device) > 0.9 for rows, cols in shapes]
    wide = [mask.repeat_interleave(n, 0).to(dtype) for mask in masks]
    blocks, plan = [(n, 1)] * len(shapes), Plan()

    def ours():
        apply_masks(weights, masks, blocks, plan)

    def repeat_interleave():
        for weight, mask in zip(weights, masks, strict=True):
            weight.mul_(mask.repeat_interleave(n, 0))

    def check():
        want = [weight * mask for weight, mask in zip(weights, wide, strict=True)]
        ours()
        assert all(torch.equal(a, b) for a, b in zip(weights, want, strict=True))

    rivals = {
        "repeat_interleave": repeat_interleave,
        "_foreach_mul_, wide masks": lambda: torch._foreach_mul_(weights, wide),
    }
    if device.type == "cuda" and len(shapes) <= 24:  # more take minutes to compile
        rivals["torch.compile"] = torch.compile(repeat_interleave)
    count = sum(weight.numel() for weight in weights)
    compare("apply_masks", f"{name} {n}x1", ours, rivals, count * 2 * dtype.itemsize + count // n, check)

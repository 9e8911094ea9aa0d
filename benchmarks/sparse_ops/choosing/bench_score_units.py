"""score_units: snip-momentum of 4x1 and 1x1 units; bf16 weights and gradients on a GPU, fp32 on a CPU.

Bytes a weight for w bytes a value: weights once, gradients twice (once for the guard), scores read and written.
"""

import pytest
import torch

from trisparse.sparse_ops import Plan, score_units


@pytest.mark.parametrize("n", [4, 1], ids=["4x1", "1x1"])
def test_score_units(compare, model, device, n):
    name, shapes = model
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    weights = [torch.randn(shape, device=device).to(dtype) for shape in shapes]
    grads = [torch.randn_like(weight) for weight in weights]
    scores = [torch.rand(rows // n, cols, device=device) for rows, cols in shapes]
    blocks, seen, plan = [(n, 1)] * len(shapes), torch.zeros(len(shapes), dtype=torch.bool, device=device), Plan()

    def ours():
        score_units(scores, weights, grads, blocks, seen, plan=plan)

    def eager():
        for s, w, g in zip(scores, weights, grads, strict=True):
            s.mul_(0.9).add_((w.float() * g.float()).abs().view(-1, n, w.shape[1]).mean(1))

    def check():
        want = [0.9 * s + (w.float() * g.float()).abs().view(-1, n, w.shape[1]).mean(1)
                for s, w, g in zip(scores, weights, grads, strict=True)]  # fmt: skip
        ours()
        for got, expected in zip(scores, want, strict=True):
            torch.testing.assert_close(got, expected)

    rivals = {"eager": eager}
    if device.type == "cuda" and len(shapes) <= 24:  # more take minutes to compile
        rivals["torch.compile"] = torch.compile(eager)
    count = sum(weight.numel() for weight in weights)
    nbytes = count * 3 * dtype.itemsize + count // n * 8
    compare("score_units", f"{name} {n}x1", ours, rivals, nbytes, check)

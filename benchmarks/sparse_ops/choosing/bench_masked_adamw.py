"""masked_adamw of 4x1 units against AdamW, score and mask one after the other; bf16 on a GPU, fp32 on a CPU.

Bytes a weight for w bytes a value: weights and moments read and written, gradients read twice (once for the
guard); scores read and written, masks read.
"""

import torch

from trisparse.sparse_ops import Plan, adamw_rates, apply_masks, masked_adamw, score_units


def test_masked_adamw(compare, model, device):
    name, shapes = model
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    params = [torch.nn.Parameter(torch.randn(shape, device=device).to(dtype)) for shape in shapes]
    weights = [param.detach() for param in params]
    grads = [torch.randn_like(weight) for weight in weights]
    firsts, seconds = [torch.zeros_like(w) for w in weights], [torch.zeros_like(w) for w in weights]
    scores = [torch.rand(rows // 4, cols, device=device) for rows, cols in shapes]
    masks = [torch.rand(rows // 4, cols, device=device) > 0.9 for rows, cols in shapes]
    blocks, plan, apart = [(4, 1)] * len(shapes), Plan(), Plan()
    seen = torch.zeros(len(shapes), dtype=torch.bool, device=device)
    rates = torch.tensor([adamw_rates(1e-3, (0.9, 0.999), 1e-8, 0.01, 10)] * len(shapes), dtype=torch.float64)
    rates = rates.to(device)
    optimizer = torch.optim.AdamW(params, lr=1e-3, fused=device.type == "cuda")
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad

    def ours():
        masked_adamw(weights, grads, firsts, seconds, rates, scores, masks, blocks, seen, plan=plan)

    def one_after_the_other():
        score_units(scores, weights, grads, blocks, seen, plan=apart)
        optimizer.step()
        apply_masks(weights, masks, blocks, apart)

    def check():
        tensors = (weights, firsts, seconds, scores)
        before = [[t.clone() for t in group] for group in tensors]
        ours()
        got = [t.clone() for group in tensors for t in group]
        for group, saved in zip(tensors, before, strict=True):
            for t, value in zip(group, saved, strict=True):
                t.copy_(value)
        want = [[t.float().cpu() for t in group] for group in before]
        masked_adamw(
            want[0], [g.float().cpu() for g in grads], want[1], want[2], rates.cpu(), want[3],
            [m.cpu() for m in masks], blocks, seen.cpu(),
        )  # fmt: skip
        for mine, theirs in zip(got, [t for group in want for t in group], strict=True):
            loose = {"rtol": 2**-7, "atol": 1e-3} if mine.dtype == torch.bfloat16 else {}
            torch.testing.assert_close(mine.float().cpu(), theirs, **loose)

    count = sum(weight.numel() for weight in weights)
    nbytes = count * 8 * dtype.itemsize + count // 4 * 9
    compare("masked_adamw", f"{name} 4x1", ours, {"score, AdamW, mask": one_after_the_other}, nbytes, check)

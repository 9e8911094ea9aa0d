"""Packed layers whose operators all run as kernels, against the masked dense layer."""

import pytest
import torch
from torch import nn

from trisparse.sparse_ops import Linear24, Linear24Train, mm_24, nm_mask_2d, pack_24


@pytest.mark.parametrize("transposed", [True, False], ids=["both ways", "one way"])
@pytest.mark.parametrize("layout", ["cutlass_sm80", "cslt_sm90"])
def test_a_training_step_on_kernels(kernels_on_cpu, count_launches, layout, transposed):
    torch.manual_seed(0)
    layer = nn.Linear(72, 132).half()
    weight = layer.weight.detach().clone()
    train = Linear24Train.from_linear(layer, transposed=transposed, layout=layout)
    mask = train.mask()
    if transposed:
        assert torch.equal(mask, nm_mask_2d(weight))
    x = torch.randn(7, 72, dtype=torch.float16, requires_grad=True)
    grad = torch.randn(7, 132, dtype=torch.float16)
    for scale in (1, 2):
        with torch.no_grad():
            layer.weight.copy_(weight * scale)
        exact = [t.detach().double().requires_grad_() for t in (x, weight * scale * mask, layer.bias)]
        want = nn.functional.linear(*exact)
        got = train(x)
        ours = got, *torch.autograd.grad(got, (x, layer.weight, layer.bias), grad)
        theirs = want, *torch.autograd.grad(want, exact, grad.double())
        for a, b, kept in zip(ours, theirs, (True, True, mask, True), strict=True):
            torch.testing.assert_close(a.double(), b * kept, rtol=2e-3, atol=5e-3 * scale)
    assert count_launches.count("pack_tiles") == 3  # for the patterns, and once a forward
    assert count_launches.count("multiply_few") == (4 if transposed else 2)
    matrix = pack_24(layer.weight, layout)
    steps = torch.randn(264, dtype=torch.float16)[::2]
    assert torch.equal(mm_24(x, matrix, steps), mm_24(x, matrix, steps.clone()))
    infer = Linear24.from_linear(train.to_linear(), mask, layout)
    torch.testing.assert_close(infer(x), train(x))
    other = Linear24.from_linear(train.to_linear(), mask, "bitmask")
    other.load_state_dict(infer.state_dict())
    torch.testing.assert_close(other(x), infer(x))

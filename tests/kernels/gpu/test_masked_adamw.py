"""The pass that steps, scores and masks against fp64, over every layout."""

import pytest
import torch

from trisparse.kernels.gpu.masked_adamw import masked_adamw
from trisparse.sparse_ops.choosing.masked_adamw import adamw_rates, masked_adamw_reference
from trisparse.sparse_ops.choosing.units import grid_shape


def like(view, values):
    """A copy with the view's own strides, in a storage of its own."""
    return torch.empty_strided(view.shape, view.stride(), dtype=values.dtype, device=view.device).copy_(values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_error_is_that_of_torch_in_every_layout(layout, device, dtype):
    check_error(layout, device, dtype, True, True)


@pytest.mark.parametrize(("scored", "masked"), [(False, True), (True, False), (False, False)])
def test_scores_and_masks_may_be_left_out(main_layout, device, scored, masked):
    check_error(main_layout, device, torch.float32, scored, masked)


def check_error(layout, device, dtype, scored, masked):
    weight, block = layout(dtype)
    start = [weight, *(layout(dtype)[0] for _ in range(2)), layout(dtype, torch.rand)[0]]
    score = torch.rand(grid_shape(weight, block), device=device)
    mask = torch.rand(grid_shape(weight, block), device=device) > 0.5
    rates = torch.tensor([adamw_rates(1e-2, (0.9, 0.999), 1e-8, 0.1, 3)], dtype=torch.float64, device=device)

    def run(how, kind):
        w, g, m, v = (like(t, t.to(kind)) for t in start)
        s, seen = score.clone(), torch.zeros(1, dtype=torch.bool, device=device)
        how(
            [w], [g], [m], [v], rates, [s] if scored else [], [mask] if masked else [], [block], seen,
            "snip_momentum", "mean", 0.9, 2.0,
        )  # fmt: skip
        assert seen.tolist() == [scored]
        return w, m, v, s

    ours, torchs, exact = (
        run(masked_adamw, dtype),
        run(masked_adamw_reference, dtype),
        run(masked_adamw_reference, torch.float64),
    )
    for name, a, b, want in zip("wmvs", ours, torchs, exact, strict=True):
        error, allowed = (a - want).abs().max(), (b - want).abs().max()
        ulp = 4e-7 if a.dtype == torch.float32 else 2**-7 if device.type == "cpu" else 0  # the interpreter truncates
        assert error <= max(2 * allowed, ulp * want.abs().max()), name
    if masked:
        assert torch.equal(ours[0] == 0, torchs[0] == 0)


def test_a_layer_without_a_gradient_is_left_alone(device):
    def tensors():
        return [torch.randn(8, 32, device=device) for _ in range(2)]

    weights, grads, firsts, seconds = tensors(), tensors(), tensors(), [t.abs() for t in tensors()]
    before = weights[0].clone()
    grads[0] = None
    rates = torch.tensor([adamw_rates(1e-2, (0.9, 0.999), 1e-8, 0.1, 1)] * 2, dtype=torch.float64, device=device)
    scores, seen = (
        [torch.zeros(2, 32, device=device) for _ in range(2)],
        torch.zeros(2, dtype=torch.bool, device=device),
    )
    masked_adamw(weights, grads, firsts, seconds, rates, scores, [], [(4, 1)] * 2, seen, "snip", "mean", 0.9, 1.0)
    assert torch.equal(weights[0], before)
    assert seen.tolist() == [False, True]


@pytest.mark.filterwarnings("ignore:invalid value")  # the interpreter's arithmetic is NumPy's
def test_a_gradient_that_is_not_finite_is_stepped_but_not_scored(device):
    weight, grad = torch.randn(8, 32, device=device), torch.randn(8, 32, device=device)
    grad[3, 3] = float("inf")
    moments = [torch.zeros_like(weight) for _ in range(2)]
    rates = torch.tensor([adamw_rates(1e-2, (0.9, 0.999), 1e-8, 0.1, 1)], dtype=torch.float64, device=device)
    score, seen = torch.rand(2, 32, device=device), torch.zeros(1, dtype=torch.bool, device=device)
    before = score.clone(), weight.clone()
    masked_adamw(
        [weight],
        [grad],
        moments[:1],
        moments[1:],
        rates,
        [score],
        [],
        [(4, 1)],
        seen,
        "snip_momentum",
        "mean",
        0.9,
        1.0,
    )
    assert torch.equal(score, before[0])
    assert not seen
    assert (weight != before[1]).sum() > 200

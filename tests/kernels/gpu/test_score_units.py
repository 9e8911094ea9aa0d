"""The score kernels against the reference and fp64, over every layout."""

import math

import pytest
import torch

from trisparse.kernels.gpu.score_units import score_units
from trisparse.kernels.plan import launches, plan_units
from trisparse.kernels.tables import LINES, LINES_T, STRIDED, TILES, TILES_T
from trisparse.sparse_ops.choosing.score_units import score_units_reference
from trisparse.sparse_ops.choosing.units import grid_shape

CANARY = 12345.0


def fenced(shape, device):
    """Random scores in the middle of a larger buffer, whose other values must not change."""
    rows, cols = shape
    buffer = torch.full((rows * cols + 64,), CANARY, device=device)
    buffer[32:-32] = torch.rand(rows * cols, device=device)
    return buffer, buffer[32:-32].view(shape)


def run(how, scores, weights, grads, blocks, criterion, reduce, decay=0.9, scale=1.0):
    seen = torch.zeros(len(scores), dtype=torch.bool, device=scores[0].device)
    how(scores, weights, grads, blocks, seen, criterion, reduce, decay, scale)
    return seen.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_error_is_that_of_torch_in_every_layout(layout, device, dtype):
    check_error(layout, device, dtype, "snip_momentum", "mean")


@pytest.mark.parametrize(
    ("dtype", "criterion", "reduce"),
    [(torch.float16, "snip", "max"), (torch.float32, "magnitude", "max"), (torch.bfloat16, "gradient", "sum")],
    ids=str,
)
def test_error_is_that_of_torch_for_every_criterion(main_layout, device, dtype, criterion, reduce):
    check_error(main_layout, device, dtype, criterion, reduce)


def check_error(layout, device, dtype, criterion, reduce):
    weight, block = layout(dtype)
    grad, _ = layout(dtype)
    buffer, ours = fenced(grid_shape(weight, block), device)
    torchs, exact = ours.clone(), ours.double()
    assert run(score_units, [ours], [weight], [grad], [block], criterion, reduce, scale=2.0) == [True]
    assert run(score_units_reference, [torchs], [weight], [grad], [block], criterion, reduce, scale=2.0) == [True]

    w, g = weight.double(), grad.double() / 2
    cost = {"magnitude": w, "gradient": g}.get(criterion, w * g).abs().reshape(weight.shape[0], -1)
    cost = cost.view(len(exact), block[0], -1, block[1])
    cost = {"mean": cost.mean((1, 3)), "sum": cost.sum((1, 3)), "max": cost.amax((1, 3))}[reduce]
    exact = (0.9 if criterion == "snip_momentum" else 0.0) * exact + cost
    error, allowed = (ours - exact).abs(), (torchs - exact).abs().max()
    assert error.max() <= max(2 * allowed, 4e-7 * exact.abs().max())
    assert (buffer[:32] == CANARY).all()
    assert (buffer[-32:] == CANARY).all()


def test_layouts_take_the_path_they_are_meant_for(device):
    w = torch.randn(64, 320, device=device)
    odd = torch.randn(8, 30, device=device)
    filters = torch.randn(8, 16, 3, 3, device=device).flatten(2).transpose(1, 2)
    for view, block, want in [
        (w, (4, 1), TILES), (w, (1, 4), TILES), (w, (32, 32), TILES), (w, (1, 1), TILES), (w.t(), (4, 1), TILES_T),
        (w, (1, 320), LINES), (w.t(), (1, 64), LINES_T), (odd, (4, 1), STRIDED), (odd, (1, 30), STRIDED),
        (w[:, 1:], (4, 1), STRIDED), (filters, (4, 1), STRIDED),
        (filters.contiguous(), (1, 144), LINES), (filters.contiguous(), (4, 1), TILES),
    ]:  # fmt: skip
        assert launches(plan_units([view], [[view]], [block]))[0].layout == want, (view.shape, block)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("place", [(0, 0), (17, 130), (-1, -1)])
def test_a_non_finite_gradient_skips_its_layer_only(device, bad, place):
    weights = [torch.randn(36, 272, device=device) for _ in range(3)]
    grads = [torch.randn(36, 272, device=device) for _ in range(3)]
    grads[1][place] = bad
    weights[1][place] = 0.0  # 0 * inf must not hide it
    scores = [torch.rand(9, 272, device=device) for _ in range(3)]
    before = [score.clone() for score in scores]
    assert run(score_units, scores, weights, grads, [(4, 1)] * 3, "snip_momentum", "mean") == [True, False, True]
    assert torch.equal(scores[1], before[1])
    assert not torch.equal(scores[2], before[2])


@pytest.mark.parametrize("how", [score_units, score_units_reference])
def test_a_non_finite_weight_is_no_reason_to_skip(device, how):
    if device.type == "cuda" and how is score_units_reference:
        pytest.skip("the reference is the CPU's")
    weight = torch.ones(4, 16, device=device)
    weight[0, 0], weight[1, 1] = math.inf, math.nan
    scores = [torch.zeros(1, 16, device=device)]
    assert run(how, scores, [weight], [torch.ones_like(weight)], [(4, 1)], "snip", "max") == [True]
    assert scores[0][0, 0] == math.inf
    assert scores[0][0, 1].isnan()


def test_layers_of_all_kinds_at_once(device):
    shapes = [(16, 64), (8, 30), (32, 16), (16, 64), (0, 16), (8, 32)]
    dtypes = [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16, torch.float32, torch.float16]
    weights = [torch.randn(s, device=device).to(d) for s, d in zip(shapes, dtypes, strict=True)]
    weights[2] = weights[2].t().contiguous().t()
    grads = [torch.randn_like(w) for w in weights]
    grads[0] = None
    grads[3] = grads[3].float()
    blocks = [(4, 1)] * 6
    ours = [torch.rand(grid_shape(w, b), device=device) for w, b in zip(weights, blocks, strict=True)]
    torchs = [score.cpu().clone() for score in ours]
    seen = run(score_units, ours, weights, grads, blocks, "snip_momentum", "mean")
    cpu = [None if g is None else g.cpu() for g in grads]
    assert seen == run(score_units_reference, torchs, [w.cpu() for w in weights], cpu, blocks, "snip_momentum", "mean")
    assert seen == [False, True, True, True, False, True]
    for a, b in zip(ours, torchs, strict=True):
        torch.testing.assert_close(a.cpu(), b)


def test_without_decay_an_infinite_score_is_forgotten(device):
    scores = [torch.full((1, 16), math.inf, device=device)]
    weight = torch.ones(4, 16, device=device)
    run(score_units, scores, [weight], [weight], [(4, 1)], "snip_momentum", "mean", decay=0.0)
    assert torch.equal(scores[0], torch.ones(1, 16, device=device))


@pytest.mark.parametrize("layers", [1, 9])
def test_launches_do_not_grow_with_the_layers(device, count_launches, layers):
    weights = [torch.randn(8, 32, device=device) for _ in range(layers)]
    scores = [torch.zeros(2, 32, device=device) for _ in range(layers)]
    run(score_units, scores, weights, weights, [(4, 1)] * layers, "snip_momentum", "mean")
    assert count_launches == ["score_tiles"] * 2  # one for the guard

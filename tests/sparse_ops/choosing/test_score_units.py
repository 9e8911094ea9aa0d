"""Scores against tables worked out by hand, and the guard against non-finite gradients."""

import math

import pytest
import torch

from trisparse.sparse_ops import score_units


def update(scores, *args, **options):
    """Score, and say which layers were updated."""
    seen = torch.zeros(len(scores), dtype=torch.bool)
    score_units(scores, *args[:3], seen, *args[3:], **options)
    return seen.tolist()


W = torch.tensor([[1.0, -2.0, 3.0, 0.0], [4.0, 5.0, -6.0, 7.0]])
G = torch.tensor([[2.0, 1.0, -1.0, 5.0], [0.5, -2.0, 1.0, 0.0]])
# |W * G| = [[2, 2, 3, 0], [2, 10, 6, 0]]


def score(criterion, block, reduce="mean", before=0.0, **options):
    rows, cols = W.shape[0] // block[0], W.shape[1] // block[1]
    scores = torch.full((rows, cols), before)
    assert update([scores], [W], [G], [block], criterion, reduce, **options) == [True]
    return scores.tolist()


@pytest.mark.parametrize(
    ("criterion", "block", "reduce", "want"),
    [
        ("magnitude", (1, 1), "mean", [[1, 2, 3, 0], [4, 5, 6, 7]]),
        ("gradient", (1, 1), "mean", [[2, 1, 1, 5], [0.5, 2, 1, 0]]),
        ("snip", (1, 1), "mean", [[2, 2, 3, 0], [2, 10, 6, 0]]),
        ("magnitude", (2, 1), "mean", [[2.5, 3.5, 4.5, 3.5]]),
        ("snip", (2, 1), "sum", [[4, 12, 9, 0]]),
        ("snip", (2, 1), "max", [[2, 10, 6, 0]]),
        ("snip", (1, 2), "mean", [[2, 1.5], [6, 3]]),
        ("snip", (2, 2), "sum", [[16, 9]]),
        ("snip", (1, 4), "mean", [[1.75], [4.5]]),
        ("gradient", (2, 4), "max", [[5]]),
    ],
)
def test_golden(criterion, block, reduce, want):
    assert score(criterion, block, reduce) == want


def test_momentum_adds_to_nine_tenths_of_the_old_score():
    assert score("snip_momentum", (2, 1), "sum", before=10.0) == [[13.0, 21.0, 18.0, 9.0]]
    assert score("snip", (2, 1), "sum", before=10.0) == [[4.0, 12.0, 9.0, 0.0]]


def test_a_scaled_gradient_is_unscaled():
    scores = torch.zeros(2, 4)
    update([scores], [W], [G * 4096], [(1, 1)], "snip", grad_scale=4096.0)
    assert torch.equal(scores, (W * G).abs())


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_non_finite_gradient_skips_its_layer_only(bad):
    broken = G.clone()
    broken[1, 2] = bad
    weights = [W.clone(), W.clone()]
    weights[0][1, 2] = 0.0  # 0 * inf must not hide it
    scores = [torch.full((2, 4), 3.0), torch.full((2, 4), 3.0)]
    assert update(scores, weights, [broken, G], [(1, 1)] * 2, "snip_momentum") == [False, True]
    assert torch.equal(scores[0], torch.full((2, 4), 3.0))
    assert torch.allclose(scores[1], 2.7 + (W * G).abs())


def test_no_gradient_leaves_the_scores():
    scores = torch.full((2, 4), 3.0)
    assert update([scores], [W], [None], [(1, 1)], "snip") == [False]
    assert scores.eq(3.0).all()
    assert update([scores], [W], [None], [(1, 1)], "magnitude") == [True]


def test_half_precision_products_are_taken_in_fp32():
    weight = torch.full((1, 4), 1e-4, dtype=torch.float16)
    scores = torch.zeros(1, 4)
    update([scores], [weight], [weight], [(1, 1)], "snip")
    assert torch.equal(scores, weight.float() ** 2)  # 1e-8 is zero in fp16


def test_a_strided_three_dimensional_view_reads_taps_before_columns():
    conv = torch.arange(24.0).view(2, 3, 2, 2)  # [out, in, kh, kw]
    view = conv.flatten(2).transpose(1, 2)  # [out, taps, in]
    scores = torch.zeros(2, 4)
    update([scores], [view], [None], [(1, 3)], "magnitude", "sum")
    assert torch.equal(scores, conv.sum(1).flatten(1))


def test_a_mistake_names_the_argument():
    with pytest.raises(ValueError, match="criterion: want one of magnitude"):
        update([], [], [], [], "movement")
    with pytest.raises(ValueError, match="reduce: want one of mean"):
        update([], [], [], [], "snip", "median")
    with pytest.raises(ValueError, match=r"weights\[0\]: want .* that 3x1 divides, got \[2, 4\]"):
        update([torch.zeros(1, 4)], [W], [G], [(3, 1)])
    with pytest.raises(ValueError, match=r"scores\[0\]: want \[1, 4\]"):
        update([torch.zeros(2, 4)], [W], [G], [(2, 1)])
    with pytest.raises(TypeError, match=r"scores\[0\]: want contiguous torch.float32"):
        update([torch.zeros(2, 4, dtype=torch.float16)], [W], [G], [(1, 1)])
    with pytest.raises(ValueError, match=r"grads\[0\]: want \[2, 4\]"):
        update([torch.zeros(2, 4)], [W], [G[:1]], [(1, 1)])

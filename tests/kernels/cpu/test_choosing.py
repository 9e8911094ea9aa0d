"""The C++ kernels that score, mask and rank: under sanitizers, and against the references."""

import importlib
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trisparse.kernels.cpu.apply_masks import apply_masks
from trisparse.kernels.cpu.masked_adamw import masked_adamw
from trisparse.kernels.cpu.nm_mask import nm_mask
from trisparse.kernels.cpu.score_units import score_units
from trisparse.kernels.cpu.select_units import fits
from trisparse.sparse_ops.choosing.apply_masks import apply_masks_reference
from trisparse.sparse_ops.choosing.masked_adamw import adamw_rates, masked_adamw_reference
from trisparse.sparse_ops.choosing.nm_mask import nm_mask_reference
from trisparse.sparse_ops.choosing.score_units import CRITERIA, REDUCTIONS, score_units_reference
from trisparse.sparse_ops.choosing.select_units import select_units_reference

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
selecting = importlib.import_module("trisparse.sparse_ops.choosing.select_units")
SPECIAL = torch.tensor([0.0, -0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan, 1e-40, -3e38])


def test_sanitized_over_odd_shapes(run_sanitized):
    run_sanitized("choosing_check.cpp")


def views(down, across, n, m, dtype, seed):
    """A weight whose rows lie apart, another's columns, and one of a convolution, all in the same units."""
    torch.manual_seed(seed)
    rows, cols = down * n, across * m
    wide = torch.randn(rows, cols + 3).to(dtype)
    return [wide[:, :cols], torch.randn(cols, rows).to(dtype).t(), torch.randn(rows, 1, cols).to(dtype)]


@settings(max_examples=80, deadline=None)
@given(
    down=st.integers(1, 9), across=st.integers(1, 40), block=st.sampled_from([(1, 1), (4, 1), (2, 3), (1, 4), (16, 16)]),
    criterion=st.sampled_from(list(CRITERIA)), reduce=st.sampled_from(list(REDUCTIONS)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]), bad=st.sampled_from([0.0, torch.inf, torch.nan]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_scores(down, across, block, criterion, reduce, dtype, bad, seed):
    weights = views(down, across, *block, dtype, seed)
    grads = [torch.empty_strided(w.shape, w.stride(), dtype=dtype).copy_(torch.randn(w.shape)) for w in weights]
    grads[0][-1, -1] += bad
    blocks = [block] * 3
    scores = [torch.rand(down, across) for _ in weights]
    want, seen, seen_there = [score.clone() for score in scores], *torch.zeros(2, 3, dtype=torch.bool)
    settings_ = criterion, reduce, 0.9, 2.0
    others = score_units(scores, weights, grads, blocks, seen, *settings_)
    assert others == (
        [0, 1, 2] if dtype is torch.float64 else [*([1] if down * block[0] > 1 and across * block[1] > 1 else []), 2]
    )
    score_units_reference(want, weights, grads, blocks, seen_there, *settings_)
    for i in set(range(3)) - set(others):
        torch.testing.assert_close(scores[i], want[i], rtol=1e-5, atol=1e-7)
        assert seen[i] == seen_there[i]


@settings(max_examples=60, deadline=None)
@given(
    down=st.integers(1, 5), across=st.integers(1, 70), block=st.sampled_from([(1, 1), (4, 1), (2, 3), (16, 16)]),
    is_scored=st.booleans(), is_masked=st.booleans(), bad=st.sampled_from([0.0, torch.inf, torch.nan]), seed=st.integers(0, 99),
)  # fmt: skip
def test_steps(down, across, block, is_scored, is_masked, bad, seed):
    weights = views(down, across, *block, torch.float32, seed)
    alike = [[torch.empty_strided(w.shape, w.stride()).copy_(torch.randn(w.shape)) for w in weights] for _ in range(3)]
    grads, firsts, seconds = alike[0], alike[1], [moment.square_() for moment in alike[2]]
    grads[0][0, 0] += bad
    scores = [torch.rand(down, across) for _ in weights] if is_scored else []
    masks = [torch.rand(down, across) < 0.2 for _ in weights] if is_masked else []
    rates = torch.tensor([adamw_rates(0.01, (0.9, 0.99), 1e-8, 0.1, 5)] * 3, dtype=torch.float64)
    seen, seen_there = torch.zeros(2, 3, dtype=torch.bool)
    want = [[t.double() for t in part] for part in (weights, grads, firsts, seconds)]
    before = [[t.double() for t in part] for part in (weights, firsts, seconds)]
    want_scores = [score.clone() for score in scores]
    how = "snip_momentum", "mean", 0.9, 2.0
    score_units_reference(want_scores, weights, grads, [block] * 3, seen_there, *how)
    others = masked_adamw(weights, grads, firsts, seconds, rates, scores, masks, [block] * 3, seen, *how)
    assert 2 in others
    masked_adamw_reference(*want, rates, [], masks, [block] * 3, seen_there, *how)
    for i in set(range(3)) - set(others):
        kept = torch.ones(weights[i].shape)
        if is_masked:
            kept = masks[i].repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
        pairs = (weights[i], want[0][i]), (firsts[i], want[2][i]), (seconds[i], want[3][i])
        for (got, right), part in zip(pairs, before, strict=True):
            got, right = torch.where(kept > 0, got, 0), torch.where(kept > 0, right, 0)
            rounding = 1e-6 * (part[i].abs() + (right - part[i]).abs())  # of what is summed, which may cancel
            is_off = right.isfinite() & ~((got - right).abs() <= rounding)
            assert not is_off.any()
            torch.testing.assert_close(got[~right.isfinite()], right[~right.isfinite()].float(), equal_nan=True)
        assert not weights[i][kept == 0].any()
        if is_scored:
            torch.testing.assert_close(scores[i], want_scores[i], rtol=1e-5, atol=1e-7)
            assert seen[i] == seen_there[i]


def test_moments_and_scores_that_fade_end_at_zero():
    """Not at one of the numbers below the smallest normal one, whose decay rounding ends."""
    weight, grad = torch.zeros(4, 40), torch.zeros(4, 40)  # some vectors, and a rest
    first, second, score = torch.full((3, 4, 40), 1.2e-38)
    first[0, 0], second[0, 0], score[0, 0] = -2e-38, torch.nan, -2e-38
    rates = torch.tensor([adamw_rates(1e-3, (0.9, 0.9), 1e-8, 0.0, 10)], dtype=torch.float64)
    seen, mask = torch.zeros(1, dtype=torch.bool), torch.ones(4, 40, dtype=torch.bool)
    how = "snip_momentum", "mean", 0.9, 1.0
    assert masked_adamw([weight], [grad], [first], [second], rates, [score], [mask], [(1, 1)], seen, *how) == []
    assert second[0, 0].isnan()
    for faded in (first, second, score):
        assert faded.count_nonzero() == 1
    for block in ((1, 1), (4, 1), (1, 4)):
        score = torch.full((4 // block[0], 40 // block[1]), 1.2e-38)
        assert score_units([score], [grad], [grad], [block], seen, *how) == []
        assert not score.any(), block


def test_moments_of_a_line_that_is_pruned_stay():
    weight, grad, first, second = (
        torch.zeros(4, 40),
        torch.ones(4, 40),
        torch.full((4, 40), 2.0),
        torch.full((4, 40), 3.0),
    )
    mask = torch.ones(1, 40, dtype=torch.bool)
    mask[:, :32] = False
    rates = torch.tensor([adamw_rates(0.01, (0.9, 0.99), 1e-8, 0.1, 5)], dtype=torch.float64)
    seen = torch.zeros(1, dtype=torch.bool)
    how = "snip", "mean", 0.9, 1.0
    assert masked_adamw([weight], [grad], [first], [second], rates, [], [mask], [(4, 1)], seen, *how) == []
    assert (first[:, :32] == 2).all()
    assert (second[:, :32] == 3).all()
    assert (first[:, 32:] < 2).all()
    assert (weight[:, 32:] < 0).all()
    assert not weight[:, :32].any()


def test_a_weight_that_is_no_number_makes_its_unit_none():
    weight = torch.ones(8, 40)
    weight[5, 7], weight[1, 39] = torch.nan, torch.inf
    for reduce in REDUCTIONS:
        score, seen = [torch.zeros(2, 40)], torch.zeros(1, dtype=torch.bool)
        assert score_units(score, [weight], [torch.ones(8, 40)], [(4, 1)], seen, "snip", reduce, 0.9, 1.0) == []
        assert bool(seen)
        assert score[0].isnan().nonzero().tolist() == [[1, 7]]
        assert score[0].isinf().nonzero().tolist() == [[0, 39]]


@settings(max_examples=60, deadline=None)
@given(
    down=st.integers(1, 9), across=st.integers(1, 70), block=st.sampled_from([(1, 1), (4, 1), (2, 3), (1, 90), (16, 16)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]), seed=st.integers(0, 99),
)  # fmt: skip
def test_masks(down, across, block, dtype, seed):
    weights = views(down, across, *block, dtype, seed)
    for weight in weights:
        weight[torch.rand(weight.shape) < 0.3] = SPECIAL[torch.randint(len(SPECIAL), (1,))].to(dtype)
    whole = weights[0]._base.clone()
    masks = [torch.rand(down, across) < 0.5 for _ in weights]
    want = [weight.clone() for weight in weights]
    apply_masks_reference(want, masks, [block] * 3)
    others = apply_masks(weights, masks, [block] * 3)
    assert 2 in others
    for i in set(range(3)) - set(others):
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[weights[i].element_size()]
        assert torch.equal(weights[i].contiguous().view(bits), want[i].contiguous().view(bits))
    assert torch.equal(
        weights[0]._base[:, across * block[1] :], whole[:, across * block[1] :]
    )  # what lies between rows


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 5), groups=st.integers(1, 30), m=st.integers(1, 32), magnitude=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]), seed=st.integers(0, 99), data=st.data(),
)  # fmt: skip
def test_groups(rows, groups, m, magnitude, dtype, seed, data):
    torch.manual_seed(seed)
    n = data.draw(st.integers(1, m))
    scores = SPECIAL[torch.randint(len(SPECIAL), (rows, groups * m))].to(dtype)  # ties everywhere
    want = nm_mask_reference(scores.abs() if magnitude else scores, n, m)
    assert torch.equal(nm_mask(scores, n, m, 1, magnitude), want)


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=4), share=st.floats(0, 1.1), is_local=st.booleans(),
    gone=st.floats(0, 0.7), size=st.integers(1, 3), more=st.integers(0, 1), few=st.sampled_from([0, 1 << 16]), seed=st.integers(0, 99),
)  # fmt: skip
def test_selections(sizes, share, is_local, gone, size, more, few, seed):
    torch.manual_seed(seed)
    scores = [SPECIAL[torch.randint(len(SPECIAL), (n,))] if seed % 2 else torch.rand(n) for n in sizes]
    masks = [torch.rand(n) >= gone for n in sizes]
    want = [mask.clone() for mask in masks]
    weights, units = [size + i % 2 * more for i in range(len(sizes))], torch.tensor(sizes)
    low, high = (
        (torch.rand(len(sizes)) * units * 0.3 * (seed % 3 > 0)).long(),
        (units * (0.8 + 0.1 * (seed % 5))).long(),
    )
    targets = (torch.tensor(weights) * units * share).long()
    targets = targets if is_local else targets.sum()[None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selecting, "_FEW", few)
        selecting._on_cpu(scores, masks, weights, low, high, targets, [])
        select_units_reference(scores, want, weights, low, high, targets)
    assert all(torch.equal(a, b) for a, b in zip(masks, want, strict=True))


def test_what_there_is_no_kernel_for():
    assert not fits([torch.rand(4).double()], [torch.ones(4, dtype=torch.bool)])
    assert not fits([torch.rand(8)[::2]], [torch.ones(4, dtype=torch.bool)])
    assert nm_mask(torch.randn(4, 8), 2, 4, 0, False) is None
    assert nm_mask(torch.randn(4, 8, dtype=torch.float64), 2, 4, 1, False) is None


def test_denormals_count_whatever_the_thread_makes_of_them():
    tiny = torch.tensor([1e-40, 3e-40, 2e-40, 4e-40, -1e-40, 0.0, -0.0, -3e-40]).repeat(40, 4)
    mask = torch.ones(40, 32, dtype=torch.bool)
    units = [tiny], [mask], [1], torch.tensor([0]), torch.tensor([mask.numel()]), torch.tensor([600])
    want = nm_mask_reference(tiny, 2, 4)
    select_units_reference(*units)
    selected = mask.clone()
    threads = torch.get_num_threads()
    torch.set_flush_denormal(True)
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            mask.fill_(True)
            assert torch.equal(nm_mask(tiny, 2, 4, 1, False), want)
            selecting.select_units(*units)
            assert torch.equal(mask, selected)
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)

"""Exact selection against a walk written out as the definition reads."""

import importlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trisparse.sparse_ops import select_units
from trisparse.sparse_ops.choosing.select_by_sorting import select_by_sorting


@pytest.fixture(autouse=True, params=[0, 1 << 16], ids=["counted", "sorted"])
def few(request, monkeypatch):
    """Every test takes both ways: by histograms, as many units are, and by sorting all of them."""
    module = importlib.import_module("trisparse.sparse_ops.choosing.select_units")
    monkeypatch.setattr(module, "_FEW", request.param)


def select(scores, pruned, sizes, lo, hi, target, how=select_units):
    """The masks, from lists."""
    masks = [~gone for gone in pruned]
    how(scores, masks, sizes, torch.tensor(lo), torch.tensor(hi), torch.tensor([target]))
    return masks


def walk(scores, pruned, sizes, lo, hi, target):
    """The definition, one unit at a time."""

    def rank(value):  # NaN above inf
        return (1, 0.0) if math.isnan(value) else (0, value)

    order = sorted(
        (not gone, rank(score), layer, index)
        for layer, (values, flags) in enumerate(zip(scores, pruned, strict=True))
        for index, (score, gone) in enumerate(zip(values.tolist(), flags.tolist(), strict=True))
    )
    masks = [torch.ones(len(s), dtype=torch.bool) for s in scores]
    taken = [0] * len(scores)
    for _, _, layer, index in order:
        if taken[layer] < lo[layer]:
            masks[layer][index] = False
            taken[layer] += 1
    gone = sum(t * p for t, p in zip(taken, sizes, strict=True))
    for _, _, layer, index in order:
        if not masks[layer][index] or taken[layer] >= hi[layer]:
            continue
        if not gone + sizes[layer] / 2 < target:
            break
        masks[layer][index] = False
        taken[layer] += 1
        gone += sizes[layer]
    return masks


SCORE = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 2.0, math.inf, math.nan, -1.5, 1e-45, 3.4e38]),
    st.floats(width=32, allow_nan=True, allow_infinity=True),
)


@st.composite
def problems(draw):
    layers = draw(st.integers(1, 4))
    scores, pruned, sizes, lo, hi = [], [], [], [], []
    for _ in range(layers):
        n = draw(st.integers(0, 12))
        scores.append(torch.tensor(draw(st.lists(SCORE, min_size=n, max_size=n)), dtype=torch.float32))
        pruned.append(torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=torch.bool))
        sizes.append(draw(st.integers(1, 9)))
        high = draw(st.integers(int(pruned[-1].sum()), n))
        lo.append(draw(st.integers(int(pruned[-1].sum()), high)))
        hi.append(high)
    return scores, pruned, sizes, lo, hi, draw(st.integers(0, 120))


@settings(max_examples=400, deadline=None)
@given(problems())
def test_equals_the_definition(problem):
    for got, want in zip(select(*problem), walk(*problem), strict=True):
        assert torch.equal(got, want)


@settings(max_examples=200, deadline=None)
@given(problems())
def test_sorting_equals_the_definition(problem):
    for got, want in zip(select(*problem, how=select_by_sorting), walk(*problem), strict=True):
        assert torch.equal(got, want)


@settings(max_examples=100, deadline=None)
@given(problems(), st.data())
def test_targets_of_each_layer_are_walks_of_their_own(problem, data):
    scores, pruned, sizes, lo, hi, _ = problem
    targets = [data.draw(st.integers(0, 60)) for _ in scores]
    masks = [~gone for gone in pruned]
    select_units(scores, masks, sizes, torch.tensor(lo), torch.tensor(hi), torch.tensor(targets))
    for i, target in enumerate(targets):
        want = walk(scores[i : i + 1], pruned[i : i + 1], sizes[i : i + 1], lo[i : i + 1], hi[i : i + 1], target)
        assert torch.equal(masks[i], want[0])


def test_bounds_are_raised_to_what_is_gone_and_lowered_to_what_is_there():
    scores, pruned = [torch.tensor([3.0, 1.0, 2.0])], [torch.tensor([True, True, False])]
    assert select(scores, pruned, [1], [0], [1], 0)[0].tolist() == [False, False, True]
    assert select(scores, pruned, [1], [9], [9], 0)[0].tolist() == [False, False, False]


@pytest.mark.parametrize("kind", ["random", "zeros", "equal", "few values", "inf"])
def test_prunes_exactly_the_target(kind):
    shapes = [(64, 96), (128, 32), (7, 11)]
    make = {
        "random": lambda s: torch.rand(s),
        "zeros": torch.zeros,
        "equal": lambda s: torch.full(s, 0.37),
        "few values": lambda s: torch.randint(0, 3, s).float(),
        "inf": lambda s: torch.full(s, math.inf),
    }[kind]
    scores = [make(s) for s in shapes]
    units = [s.numel() for s in scores]
    total = sum(units)
    for target in (0, 1, total // 3, total - 1, total):
        masks = select(scores, [torch.zeros(s, dtype=torch.bool) for s in shapes], [1] * 3, [0] * 3, units, target)
        assert sum(int((~m).sum()) for m in masks) == target


def test_ties_prune_the_lower_layer_then_the_lower_index():
    scores = [torch.tensor([1.0, 1.0, 0.0]), torch.tensor([1.0, 0.0])]
    gone = [torch.zeros(3, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)]
    first, second = select(scores, gone, [1, 1], [0, 0], [3, 2], 3)
    assert first.tolist() == [False, True, False]
    assert second.tolist() == [True, False]


def test_the_walk_stops_at_half_of_the_next_unit():
    def gone(scores, sizes, target):
        masks = select(
            scores,
            [torch.zeros_like(s, dtype=torch.bool) for s in scores],
            sizes,
            [0] * len(scores),
            [len(s) for s in scores],
            target,
        )
        return [int((~m).sum()) for m in masks]

    assert [gone([torch.arange(5.0)], [4], t) for t in (0, 2, 3, 6, 7)] == [[0], [0], [1], [1], [2]]
    # scores so close that all are weighed in one bracket; at two weights gone, 2 + 2 / 2 is not below 3
    assert gone([torch.tensor([1.0, 1.001]), torch.tensor([1.002])], [2, 4], 3) == [1, 0]


def test_large_layers_against_a_stable_sort():
    scores = [torch.rand(4096, 96).pow(6), torch.rand(1000, 33)]
    gone = [torch.zeros_like(s, dtype=torch.bool) for s in scores]
    units = [s.numel() for s in scores]
    target = int(0.7 * sum(units))
    flat = torch.cat([s.flatten() for s in scores])
    want = torch.ones(len(flat), dtype=torch.bool)
    want[torch.argsort(flat, stable=True)[:target]] = False
    masks = select(scores, gone, [1, 1], [0, 0], units, target)
    assert torch.equal(torch.cat([m.flatten() for m in masks]), want)


def test_a_mistake_names_the_argument():
    score, keep = torch.rand(4), torch.ones(4, dtype=torch.bool)
    bound, target = torch.tensor([2]), torch.tensor([2])
    with pytest.raises(ValueError, match=r"masks\[0\]: want \[4\] like its scores, got \[3\]"):
        select_units([score], [keep[:3]], [1], bound, bound, target)
    with pytest.raises(TypeError, match=r"masks\[0\]: want contiguous torch.bool"):
        select_units([score], [score], [1], bound, bound, target)
    with pytest.raises(ValueError, match="sizes: want 1 entries"):
        select_units([score], [keep], [1, 1], bound, bound, target)
    with pytest.raises(ValueError, match=r"sizes\[0\]: want at least 1"):
        select_units([score], [keep], [0], bound, bound, target)
    with pytest.raises(TypeError, match="lo: want contiguous torch.int64"):
        select_units([score], [keep], [1], bound.float(), bound, target)
    with pytest.raises(ValueError, match="targets: want 1 value or 2"):
        select_units([score] * 2, [keep] * 2, [1] * 2, bound.repeat(2), bound.repeat(2), target.repeat(3))

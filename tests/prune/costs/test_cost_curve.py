"""How many units each layer gives up under a budget: by hand, and against every other choice."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trisparse.prune.costs.cost_curve import WHOLE, CostCurve, Offer, curve_of, units_to_prune


def offer(units, costs, scores, pruned=0, low=0, high=None):
    high = units[-1] if high is None else high
    return Offer(
        CostCurve(tuple(units), tuple(costs)), np.sort(np.array(scores, np.float32))[pruned:], pruned, low, high
    )


def test_a_curve_by_hand():
    curve = CostCurve((0, 4, 6, 10), (100, 90, 40, 20))
    assert [curve.at(n) for n in (0, 1, 4, 5, 6, 8, 10)] == [100, 98, 90, 65, 40, 30, 20]
    assert curve.envelope == CostCurve((0, 6, 10), (100, 40, 20))  # at 4 the line from 0 to 6 is at 60, below 90
    assert curve_of([(0, 8.0), (5, 9.0), (10, 2.0)], 16.0) == CostCurve(
        (0, 5, 10), (WHOLE // 2, WHOLE // 2, WHOLE // 8)
    )


def test_units_go_by_score_over_saving():
    # units of the first layer save 10 each, of the second 2 each: ratios .1 .2 .3 .4 and .5 1 1.5 2
    layers = [offer((0, 4), (40, 0), [1, 2, 3, 4]), offer((0, 4), (8, 0), [1, 2, 3, 4])]
    assert units_to_prune(layers, 48, False) == [0, 0]
    assert units_to_prune(layers, 30, False) == [2, 0]  # 48 - 20 = 28
    assert units_to_prune(layers, 8, False) == [4, 0]
    assert units_to_prune(layers, 7, False) == [4, 1]
    assert units_to_prune(layers, -5, False) == [4, 4]  # as much as there is


def test_ties_go_to_the_first_layer_and_take_no_more_than_they_must():
    layers = [offer((0, 3), (30, 0), [1, 1, 1]), offer((0, 3), (30, 0), [1, 1, 1])]
    assert units_to_prune(layers, 50, False) == [1, 0]
    assert units_to_prune(layers, 20, False) == [3, 1]


def test_the_last_event_meets_what_was_measured():
    # nothing is saved before two of four units are gone; the envelope foresees 10 a unit
    layers = [offer((0, 2, 4), (40, 40, 0), [1, 2, 3, 4])]
    assert units_to_prune(layers, 30, False) == [1]
    assert units_to_prune(layers, 30, True) == [3]


def test_bounds_and_infinite_scores():
    layers = [
        offer((0, 4), (40, 0), [np.inf, 1, 1, np.inf], low=1, high=3),
        offer((0, 4), (40, 0), [9, 9, 9, 9], low=2),
    ]
    assert units_to_prune(layers, 80, False) == [1, 2]
    assert units_to_prune(layers, 40, False) == [2, 2]
    assert units_to_prune(layers, 10, False) == [3, 4]


def test_zero_scores_go_first():
    layers = [offer((0, 4), (4, 0), [0, 0, 1, 1]), offer((0, 4), (400, 0), [0, 1, 1, 1])]
    assert units_to_prune(layers, 402, False) == [2, 0]
    assert units_to_prune(layers, 302, False) == [2, 1]


@st.composite
def problems(draw):
    layers = []
    for _ in range(draw(st.integers(1, 3))):
        units = draw(st.integers(1, 5))
        points = sorted(draw(st.sets(st.integers(1, units), max_size=3)) | {0, units})
        costs = sorted(draw(st.lists(st.integers(0, 60), min_size=len(points), max_size=len(points))), reverse=True)
        scores = draw(st.lists(st.integers(0, 6), min_size=units, max_size=units))
        layers.append(offer(points, costs, scores))
    return layers


@settings(max_examples=300, deadline=None)
@given(layers=problems(), share=st.floats(0, 1))
def test_no_other_choice_saves_as_much_for_a_smaller_sum_of_scores(layers, share):
    envelopes = [layer.curve.envelope for layer in layers]
    dense = sum(curve.dense for curve in envelopes)
    got = units_to_prune(layers, int(dense * share), False)

    def cost(counts):
        return sum(curve.at(n) for curve, n in zip(envelopes, counts, strict=True))

    def lost(counts):
        return sum(float(layer.scores[:n].sum()) for layer, n in zip(layers, counts, strict=True))

    every = itertools.product(*(range(layer.high + 1) for layer in layers))
    reachable = min(sum(curve.costs[-1] for curve in envelopes), dense)
    assert cost(got) <= max(int(dense * share), reachable)
    slack = len(layers)  # costs between points are rounded down to whole numbers
    assert all(lost(other) >= lost(got) for other in every if cost(other) < cost(got) - slack)


@settings(max_examples=200, deadline=None)
@given(layers=problems(), shares=st.lists(st.floats(0, 1), min_size=2, max_size=4), is_final=st.booleans())
def test_choices_nest_from_event_to_event(layers, shares, is_final):
    dense, before = sum(layer.curve.dense for layer in layers), [0] * len(layers)
    for share in sorted(shares, reverse=True):
        now = [layer._replace(pruned=n, scores=layer.scores[n:]) for layer, n in zip(layers, before, strict=True)]
        counts = units_to_prune(now, int(dense * share), is_final and share == min(shares))
        assert all(a <= b <= layer.high for a, b, layer in zip(before, counts, layers, strict=True))
        assert counts == units_to_prune(now, int(dense * share), is_final and share == min(shares))
        before = counts


@settings(max_examples=100, deadline=None)
@given(layers=problems(), share=st.floats(0, 1))
def test_without_its_last_unit_some_layer_would_be_over_the_budget(layers, share):
    budget = int(sum(layer.curve.dense for layer in layers) * share)
    got = units_to_prune(layers, budget, False)
    curves = [layer.curve.envelope for layer in layers]
    fewer = [[n - (i == j) for j, n in enumerate(got)] for i, count in enumerate(got) if count]
    totals = [sum(curve.at(n) for curve, n in zip(curves, counts, strict=True)) for counts in fewer]
    assert not totals or max(totals) > budget

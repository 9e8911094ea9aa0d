"""The selection kernels against the reference, exactly."""

import importlib
import math
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trisparse.kernels.gpu.select_units import select_units
from trisparse.sparse_ops.choosing.select_units import select_units_reference

SCORES = [0.0, -0.0, 1.0, 2.0, math.inf, -math.inf, math.nan, -math.nan, -1.5, 1e-45, 3.4e38]


def both(device, scores, masks, sizes, lo, hi, targets):
    """Masks by the kernels and by the reference."""
    ours = [mask.to(device, copy=True) for mask in masks]
    theirs = [mask.clone() for mask in masks]
    bounds = torch.tensor(lo), torch.tensor(hi), torch.tensor(targets)
    select_units([s.to(device) for s in scores], ours, sizes, *(b.to(device) for b in bounds))
    select_units_reference(scores, theirs, sizes, *bounds)
    return [mask.cpu() for mask in ours], theirs


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks so short that small layers span several."""
    for name in ("plan", "gpu.select_units"):
        monkeypatch.setattr(importlib.import_module(f"trisparse.kernels.{name}"), "SELECTION_CHUNK", 16)


@st.composite
def problems(draw):
    generator = random.Random(draw(st.integers(0, 10**9)))
    kind = draw(st.sampled_from(["specials", "few values", "uniform", "one octave"]))
    make = {
        "specials": lambda: generator.choice(SCORES),
        "few values": lambda: float(generator.randint(0, 2)),
        "uniform": generator.random,
        "one octave": lambda: 1 + generator.random(),
    }[kind]
    scores, masks, lo, hi = [], [], [], []
    for _ in range(draw(st.integers(2, 4))):
        n = draw(st.integers(0, 40))
        scores.append(torch.tensor([make() for _ in range(n)], dtype=torch.float32))
        masks.append(torch.rand(n) >= draw(st.sampled_from([0.0, 0.2, 0.7])))
        high = draw(st.sampled_from([n, generator.randint(0, n)]))
        lo.append(draw(st.sampled_from([0, generator.randint(0, high)])))
        hi.append(high)
    return scores, masks, lo, hi


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problems(), st.integers(1, 5), st.floats(0, 1.1))
def test_all_layers_together(device, small_chunks, problem, size, share):
    scores, masks, lo, hi = problem
    target = int(share * size * sum(map(len, scores)))
    ours, theirs = both(device, scores, masks, [size] * len(scores), lo, hi, [target])
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problems(), st.data())
def test_each_layer_by_itself(device, small_chunks, problem, data):
    scores, masks, lo, hi = problem
    sizes = [data.draw(st.integers(1, 5)) for _ in scores]
    targets = [data.draw(st.integers(0, 200)) for _ in scores]
    ours, theirs = both(device, scores, masks, sizes, lo, hi, targets)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("kind", ["zeros", "equal", "inf", "nan", "random", "one layer far larger"])
@pytest.mark.parametrize("share", [0.0, 0.37, 1.0])
def test_worst_cases(device, kind, share):
    shapes = [(100, 96), (33, 7), (1, 1)]
    scores = [torch.rand(shape) for shape in shapes]
    if kind in ("zeros", "equal", "inf", "nan"):
        value = {"zeros": 0.0, "equal": 0.37, "inf": math.inf, "nan": math.nan}[kind]
        scores = [torch.full(shape, value) for shape in shapes]
    if kind == "one layer far larger":
        scores[1] *= 1e30
    masks = [torch.ones(shape, dtype=torch.bool) for shape in shapes]
    units = [mask.numel() for mask in masks]
    target = int(share * sum(units))
    ours, theirs = both(device, scores, masks, [1] * 3, [0] * 3, units, [target])
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert sum(int((~mask).sum()) for mask in ours) == target


@pytest.mark.parametrize("values", [[0.0, -0.0], [-0.0, 0.0]])
def test_the_sign_of_zero_breaks_no_tie(device, values):
    scores, masks = [torch.tensor(values)], [torch.ones(2, dtype=torch.bool)]
    ours, theirs = both(device, scores, masks, [1], [0], [2], [1])
    assert ours[0].tolist() == theirs[0].tolist() == [False, True]


def test_ties_of_several_chunks_go_by_index(device, small_chunks):
    scores, masks = (
        [torch.ones(100), torch.zeros(3)],
        [torch.ones(100, dtype=torch.bool), torch.ones(3, dtype=torch.bool)],
    )
    ours, _ = both(device, scores, masks, [1, 1], [0, 0], [100, 3], [3 + 53])
    assert ours[0].tolist() == [False] * 53 + [True] * 47


def test_more_layers_than_one_program_adds_up_at_a_time(device, small_chunks):
    scores = [torch.rand(9) for _ in range(40)]
    masks = [torch.ones(9, dtype=torch.bool) for _ in range(40)]
    ours, theirs = both(device, scores, masks, [1] * 40, [0] * 39 + [5], [9, 2] * 20, [150])
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_ties_of_more_chunks_than_one_program_adds_up_at_a_time(device, small_chunks):
    scores, masks = [torch.ones(700)], [torch.ones(700, dtype=torch.bool)]
    ours, _ = both(device, scores, masks, [1], [0], [700], [650])
    assert ours[0].tolist() == [False] * 650 + [True] * 50


def test_launches_do_not_grow_with_the_layers(device, count_launches):
    def launches(layers):
        count_launches.clear()
        scores = [torch.rand(32, device=device) for _ in range(layers)]
        masks = [torch.ones(32, dtype=torch.bool, device=device) for _ in range(layers)]
        bound = torch.full((layers,), 32, device=device)
        select_units(scores, masks, [1] * layers, 0 * bound, bound, torch.tensor([16], device=device))
        return len(count_launches)

    assert launches(2) == launches(20) == 20


def test_nothing_to_choose_from(device):
    none = torch.zeros(2, dtype=torch.int64, device=device)
    masks = [torch.zeros(0, dtype=torch.bool, device=device)] * 2
    select_units([torch.zeros(0, device=device)] * 2, masks, [1, 1], none, none, none[:1])
    select_units([], [], [], none[:0], none[:0], none[:1])

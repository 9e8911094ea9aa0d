"""Schedules against a recorded table, and where their events fall."""

import pytest

from trisparse.prune.config.schedules import SCHEDULES, event_at, last_event, sparsity_at

# target 0.9, events 1 to 10 of P = 10
TABLE = {
    "linear": [0.09, 0.18, 0.27, 0.36, 0.45, 0.54, 0.63, 0.72, 0.81, 0.9],
    "cos": [0.0111, 0.044, 0.0981, 0.1719, 0.2636, 0.371, 0.4914, 0.6219, 0.7592, 0.9],
    "exp": [0.2057, 0.369, 0.4988, 0.6019, 0.6838, 0.7488, 0.8005, 0.8415, 0.8741, 0.9],
    "cube": [0.0009, 0.0072, 0.0243, 0.0576, 0.1125, 0.1944, 0.3087, 0.4608, 0.6561, 0.9],
    "cubic": [0.2439, 0.4392, 0.5913, 0.7056, 0.7875, 0.8424, 0.8757, 0.8928, 0.8991, 0.9],
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_table(name):
    got = [sparsity_at(name, 0.9, event, 10) for event in range(1, 11)]
    assert got == pytest.approx(TABLE[name], abs=5e-5)
    assert sparsity_at(name, 0.9, 0, 10) == 0


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("target", [0.5, 0.9, 0.1, 1 / 3])
def test_the_last_event_is_the_target_to_the_bit(name, target):
    for last in range(201):
        assert sparsity_at(name, target, last, last) == target


@pytest.mark.parametrize(
    ("start", "end", "frequency", "want"),
    [
        (1, 10, 4, {1: 0, 5: 0.45, 9: 0.9}),
        (1, 10, 3, {1: 0, 4: 0.3, 7: 0.6, 10: 0.9}),
        (1, 1, 1, {1: 0.9}),
        (2, 5, 10, {2: 0.9}),
        (0, 4, 2, {0: 0, 2: 0.45, 4: 0.9}),
    ],
)
def test_boundaries(start, end, frequency, want):
    last = last_event(start, end, frequency)
    events = {s: event_at(s, start, end, frequency) for s in range(end + 20)}
    got = {s: sparsity_at("linear", 0.9, j, last) for s, j in events.items() if j is not None}
    assert got == pytest.approx(want)

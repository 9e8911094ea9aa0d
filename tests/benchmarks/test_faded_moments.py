"""The benchmark of faded moments: each optimizer is timed over moments that are what it says."""

import pytest
import torch

SHAPES = [(64, 48), (48, 64)]


@pytest.fixture
def bench(load):
    return load("prune/pruner/bench_faded_moments_cpu.py")


def test_every_optimizer_steps_over_the_same_moments(bench):
    masks = [torch.rand(n // 4, m) < 0.1 for n, m in SHAPES]
    steps = bench.steps(SHAPES, masks, bench.FADED)
    weights = steps["AdamW"].__self__.param_groups[0]["params"]
    state = steps["AdamW"].__self__.state
    pruned = [weight.grad == 0 for weight in weights]
    before = [weight.detach().clone() for weight in weights]
    steps["AdamW"]()
    for weight, gone, was in zip(weights, pruned, before, strict=True):
        assert 0.8 < gone.float().mean() < 1
        assert (state[weight]["exp_avg"][gone] == bench.FADED).all(), "rounding keeps them"
        assert not torch.equal(weight, was)
    if torch.set_flush_denormal(False):
        steps["AdamW, flushed"]()
        assert not any(state[weight]["exp_avg"][gone].any() for weight, gone in zip(weights, pruned, strict=True))
    steps["MaskedAdamW"]()


def test_a_row_for_each_optimizer_early_and_late(bench):
    found = bench.rows(SHAPES, 1)
    assert len({(row["optimizer"], row["moments"]) for row in found}) == len(found) == 6
    assert all(row["ms"] > 0 for row in found)
    lines = bench.table(found).splitlines()
    assert len(lines) == 4
    assert lines[0].split() == ["a", "step", "of", "early", "moments", "faded"]

"""The benchmark of faded moments: what steps are timed over is what it says.

The step that flushes is not made here: threads that start meanwhile would go on flushing in other tests.
"""

import torch

SHAPES = [(64, 48), (48, 64)]


def test_moments_of_pruned_weights_stay_faded(load):
    bench = load("prune/pruner/bench_faded_moments_cpu.py")
    masks = [torch.rand(n // 4, m) < 0.1 for n, m in SHAPES]
    step = bench.steps(SHAPES, masks, bench.FADED)["AdamW"]
    optimizer = step.__self__
    for _ in range(2):
        step()
    for weight, mask in zip(optimizer.param_groups[0]["params"], masks, strict=True):
        gone = ~mask.repeat_interleave(4, 0)
        assert gone.any()
        assert (optimizer.state[weight]["exp_avg"][gone] == bench.FADED).all()
        assert (optimizer.state[weight]["exp_avg"][~gone].abs() > 1e-10).all()


def test_a_line_for_each_optimizer(load):
    table = load("prune/pruner/bench_faded_moments_cpu.py").table
    rows = [
        {"optimizer": "AdamW", "moments": moments, "ms": ms} for moments, ms in (("early", 13.04), ("faded", 245.0))
    ]
    assert table(rows).splitlines()[1].split() == ["AdamW", "13.0", "ms", "245.0", "ms"]

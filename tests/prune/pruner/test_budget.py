"""Pruning to a budget: what layers cost, what is promised, and that the schedule moves the budget."""

import copy
import itertools

import pytest
import torch
from torch import nn

from trisparse import Pruner, PruningConfig, PruningError, prune_once
from trisparse.prune.costs import layer_cost
from trisparse.prune.costs.cost_curve import WHOLE

WINDOW = {"start_step": 1, "end_step": 9, "pruning_frequency": 2, "exclude_head": False}


def network(*sizes):
    torch.manual_seed(0)
    layers = [nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))


@pytest.fixture
def known_times(monkeypatch, tmp_path):
    """Layers whose times are known: dense a nanosecond a weight, packed twice that for what is kept; no clock is read."""
    monkeypatch.setenv("TRISPARSE_CACHE", str(tmp_path))

    def measured(layer, share, rows, cols, tokens):
        return {"dense_ms": rows * cols * 1e-6, "packed_ms": rows * cols * 2e-6 * (1 - share) + 1e-9, "equal": True}

    def model_ms(model, example):
        linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
        packed = [m for m in model.modules() if type(m).__name__ == "LinearBlocks"]
        kept = sum(int((m.values != 0).sum()) for m in packed)
        return 1e-3 + sum(m.weight.numel() for m in linear) * 1e-6 + kept * 2e-6

    monkeypatch.setattr(layer_cost, "_measured", measured)

    def times_faster(before, after, example, rounds):
        return model_ms(before, example) / model_ms(after, example)

    monkeypatch.setattr("trisparse.prune.costs.cost_table.model_ms", model_ms)
    monkeypatch.setattr("trisparse.prune.costs.cost_table.times_faster", times_faster)


def train(model, config, steps=10, **more):
    pruner = Pruner(model, config, **more)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    torch.manual_seed(1)
    costs = []
    with pruner.attach(optimizer):
        for _ in range(steps):
            model(torch.randn(4, model[0].in_features)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            costs.append(pruner.budgets[0].cost())
    return pruner, costs


def test_flops_are_met_exactly_and_layers_compete():
    model = network(32, 64, 64, 16)
    pruner, costs = train(model, PruningConfig(pattern="1x1", target_flops=0.3, **WINDOW))
    total = sum(layer.numel for layer in pruner.layers)
    left = sum(int((layer.weight != 0).sum()) for layer in pruner.layers)
    assert left == round(0.3 * total)  # single weights: to the weight
    assert costs[-1] == pytest.approx(0.3, abs=1e-3)
    assert len({round(row.sparsity, 2) for row in pruner.report().layers}) > 1
    assert any("target_flops 0.3: 0.300 of the multiplications" in note for note in pruner.report().notes)


def test_the_schedule_moves_the_budget():
    _, costs = train(network(32, 64, 64), PruningConfig(target_flops=0.2, sparsity_decay_type="linear", **WINDOW))
    assert costs[::2] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2], abs=0.01)  # events 0 to 4, at steps 1, 3, 5, 7, 9


def test_bytes_are_those_that_compress_leaves(tmp_path):
    from trisparse import compress

    model = network(64, 256, 256, 64)
    dense = sum(p.nbytes for p in model.parameters())
    report = prune_once(model, pattern="4x1", target_bytes=0.4, exclude_head=False)
    _, done = compress(model, prefer="memory", measure=False)
    assert done.bytes_after == pytest.approx(0.4 * dense, rel=0.02)
    assert any(f"promised {round(0.4 * dense / 1000)}" in note for note in report.notes)
    again = network(64, 256, 256, 64)
    assert "of the dense model's" in str(
        prune_once(again, pattern="4x1", target_bytes=int(0.4 * dense), exclude_head=False)
    )


@pytest.mark.usefixtures("known_times")
def test_speed_by_hand():
    # 2048 and 4096 weights; a third of the time is nobody's: 6144 ns of layers, 1000 ns of the rest
    model = network(32, 64, 64)
    config = PruningConfig(pattern="4x1", target_speedup=2.0, **WINDOW)
    pruner = Pruner(model, config, example={"input": torch.randn(4, 32)})
    table = pruner.budgets[0].table
    assert table.rest / WHOLE == pytest.approx(1000 / 7144, rel=0.05)
    first, second = table.curves["0"], table.curves["2"]
    assert first.dense / WHOLE == pytest.approx(2048 / 7144, rel=0.05)
    assert first.at(256) == first.dense, "half of the units gone costs what dense does"
    assert first.at(306) == first.dense > first.at(307), "up to the first share with a gain the layer stays dense"
    assert second.at(922) / WHOLE == pytest.approx(
        0.2 * 4096 / 7144, rel=0.05
    )  # nine tenths gone: a tenth, twice as slow


@pytest.mark.usefixtures("known_times")
def test_speed_is_promised_and_both_layers_gain():
    pruner, costs = train(
        network(32, 64, 64),
        PruningConfig(pattern="4x1", target_speedup=2.0, **WINDOW),
        example={"input": torch.randn(4, 32)},
    )
    assert 0.4 < costs[-1] <= 0.5  # a layer's first gain comes at once
    assert any("promised 2" in note and "times as fast as dense" in note for note in pruner.report().notes)


@pytest.mark.usefixtures("known_times")
@pytest.mark.parametrize("pattern", ["2:4", "1xchannel", "channelx1"])
def test_other_patterns(pattern):
    model = network(32, 64, 64)
    pruner, costs = train(
        model, PruningConfig(pattern=pattern, target_flops=0.7, **WINDOW), example={"input": torch.randn(4, 32)}
    )
    assert costs[-1] <= 0.7 + 1e-6
    if pattern == "2:4":  # whole layers at once
        assert [row.sparsity for row in pruner.report().layers] == [0.0, 0.5] or costs[-1] < 0.6


def test_groups_of_several_patterns_share_a_budget():
    model = network(32, 64, 64, 64)
    groups = [
        {"op_names": ["^0$"], "pattern": "1x1"},
        {"op_names": ["^2$"], "pattern": "4x1"},
        {"op_names": ["^4$"], "pattern": "2:4"},
    ]
    pruner, costs = train(model, PruningConfig(pruning_configs=groups, target_flops=0.4, **WINDOW))
    assert len(pruner.budgets) == 1
    assert 0.3 < costs[-1] <= 0.4  # a 2:4 layer goes as a whole
    assert pruner.report().pattern_verified


def test_a_group_with_a_sparsity_of_its_own_counts_as_it_is():
    model = network(32, 64, 64)
    groups = [{"op_names": ["^0$"], "target_sparsity": 0.5}, {"op_names": ["^2$"]}]
    pruner, costs = train(model, PruningConfig(pruning_configs=groups, target_flops=0.6, **WINDOW))
    assert pruner.budgets[0].table.rest == pytest.approx(WHOLE * 2048 / 6144, rel=1e-6)
    assert costs[-1] == pytest.approx(0.6, abs=0.01)
    assert [round(row.sparsity, 2) for row in pruner.report().layers] == [0.5, 0.6]


def test_going_on_from_a_state_equals_not_having_stopped():
    config = PruningConfig(pattern="4x1", target_flops=0.3, **WINDOW)
    whole = network(32, 64, 64)
    pruner, _ = train(whole, config)
    model = network(32, 64, 64)
    first = Pruner(model, config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    torch.manual_seed(1)

    def steps(pruner, count):
        with pruner.attach(optimizer):
            for _ in range(count):
                model(torch.randn(4, 32)).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()

    steps(first, 4)
    state = copy.deepcopy(first.state_dict())
    second = Pruner(model, config)
    second.budgets[0].take(second.budgets[0].table._replace(rest=0))  # what is loaded counts, not what was measured
    second.load_state_dict(state)
    steps(second, 6)
    assert all(torch.equal(a, b) for a, b in zip(pruner.masks().values(), second.masks().values(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters(), strict=True))


def test_a_config_says_its_budget_again():
    config = PruningConfig(pattern="4x1", target_speedup=3.0, tokens=[8], **WINDOW)
    saved = config.to_dict()[0]
    assert (saved["target_speedup"], saved["tokens"]) == (3.0, [8])
    assert "target_sparsity" not in saved
    assert PruningConfig(pruning_configs=config.to_dict()) == config
    assert "target_speedup" not in PruningConfig(**WINDOW).to_dict()[0]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"target_speedup": 1}, "target_speedup: want how many times as fast, more than 1, got 1"),
        ({"target_speedup": "3"}, "target_speedup: want how many times as fast, more than 1, got '3'"),
        ({"target_bytes": 1.5}, "target_bytes: want a share between 0 and 1, or a whole number of bytes, got 1.5"),
        ({"target_flops": 2}, "target_flops: want a share between 0 and 1, got 2"),
        ({"target_speedup": 3, "target_bytes": 0.5}, "target_bytes: target_speedup is the budget already"),
        ({"target_speedup": 3, "target_sparsity": 0.5}, "target_sparsity: target_speedup says how far to prune"),
        ({"target_speedup": 3, "pruning_scope": "local"}, "pruning_scope: under target_speedup all layers compete"),
        ({"target_speedup": 3, "tokens": 5}, "tokens: want a list of numbers of tokens, each 1 or more, got 5"),
        ({"target_bytes": 0.5, "tokens": [5]}, "tokens: has no effect on target_bytes; leave it out"),
        ({"tokens": [5]}, "tokens: has no effect without target_speedup; leave it out"),
    ],
)
def test_mistakes_in_a_config(keys, says):
    with pytest.raises(PruningError, match=says):
        PruningConfig(**WINDOW, **keys)


def test_groups_that_share_a_budget_share_its_schedule():
    groups = [{"op_names": ["a"]}, {"op_names": ["b"], "end_step": 5}]
    with pytest.raises(PruningError, match=r"end_step: groups that share target_flops 0.5 want the same, got \[9, 5\]"):
        PruningConfig(pruning_configs=groups, target_flops=0.5, **WINDOW)


def test_mistakes_that_a_model_shows():
    model = network(32, 64, 64)
    with pytest.raises(
        PruningError, match=r"target_flops: 0.01 is out of reach: 0.0208 of the dense model's is the best"
    ):
        Pruner(model, PruningConfig(target_flops=0.01, **WINDOW))
    with pytest.raises(PruningError, match=r"target_bytes: 100 is out of reach: \d+ bytes is the best"):
        Pruner(model, PruningConfig(target_bytes=100, **WINDOW))
    with pytest.raises(PruningError, match="target_speedup: there are no inputs to time this model with"):
        Pruner(model, PruningConfig(target_speedup=2, **WINDOW))
    with pytest.raises(PruningError, match="example: the model does not run on it: TypeError"):
        Pruner(model, PruningConfig(target_speedup=2, **WINDOW), example={"ids": torch.randn(1, 32)})
    convolution = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8, 8))
    with pytest.raises(PruningError, match="target_flops: costs are known of linear layers alone; .*: 0"):
        Pruner(convolution, PruningConfig(target_flops=0.5, **WINDOW))


def test_without_a_clock_a_static_model_stands_in():
    model = network(256, 1024, 256)
    pruner = Pruner(model, PruningConfig(pattern="4x1", target_speedup=2.0, tokens=[64], **WINDOW), measure=False)
    curve = pruner.budgets[0].table.curves["0"]
    assert curve.at(0) > curve.at(curve.units[-1] * 9 // 10) > 0


def test_a_state_of_a_budget_is_of_another_config():
    keys = {"pattern": "4x1", "start_step": 1, "end_step": 2, "exclude_head": False}
    state = Pruner(nn.Sequential(nn.Linear(64, 64)), {**keys, "target_bytes": 0.5}).state_dict()
    other = Pruner(nn.Sequential(nn.Linear(64, 64)), keys)
    with pytest.raises(PruningError, match="state: of another config"):
        other.load_state_dict(state)
    assert other.step_count == 0

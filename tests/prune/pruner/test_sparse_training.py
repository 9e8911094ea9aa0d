"""Training on what the masks keep: the same masks, the same weights but for rounding, and dense where it must be."""

import copy
import shutil

import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from transformers import BertConfig, BertForSequenceClassification

from trisparse import MaskedAdamW, Pruner, PruningConfig, PruningError, compress
from trisparse.prune.pruner import sparse_training
from trisparse.sparse_ops import LinearMasked, MaskedBlocks, MaskedChannels

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
PATTERNS = ["4x1", "1x1", "2x1", "16x16", "2:4", "1xchannel", "channelx1"]


def tiny_bert(dtype):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config).to(dtype)


def config_of(pattern, steps, **more):
    return PruningConfig(
        pattern=pattern, target_sparsity=0.4 if ":" in pattern else 0.8, start_step=2, end_step=steps - 2,
        pruning_frequency=2, **more,
    )  # fmt: skip


def train(mode, pattern, steps, dtype=torch.float64, optimizer=torch.optim.AdamW, model=None, **more):
    """The model, and the masks after every step."""
    model = tiny_bert(dtype) if model is None else model
    pruner = Pruner(model, config_of(pattern, steps, **more), sparse_training=mode)
    generator = torch.Generator().manual_seed(1)
    made = optimizer(model.parameters(), lr=1e-3)
    history = []
    with pruner.attach(made):
        for _ in range(steps):
            ids = torch.randint(40, (3, 7), generator=generator)
            model(input_ids=ids, labels=ids[:, 0] % 2).loss.backward()
            made.step()
            made.zero_grad()
            history.append({name: mask.clone() for name, mask in pruner.masks().items()})
        sparse = pruner.sparse_layers
    return model, history, sparse, pruner


@pytest.mark.parametrize(
    ("pattern", "optimizer"), [("4x1", MaskedAdamW), *((pattern, torch.optim.AdamW) for pattern in PATTERNS)]
)
def test_masks_are_identical_and_weights_within_rounding(pattern, optimizer):
    dtype = torch.float32 if optimizer is MaskedAdamW else torch.float64
    dense, masks, none, _ = train("off", pattern, 10, dtype, optimizer)
    model, own, sparse, _ = train("on", pattern, 10, dtype, optimizer)
    assert none == []
    assert len(sparse) == len(own[0])
    for before, now in zip(masks, own, strict=True):
        assert all(torch.equal(before[name], now[name]) for name in before)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 1e-9, "atol": 1e-11}
    for ours, theirs in zip(model.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


def test_a_hundred_steps():
    dense, masks, _, _ = train("off", "4x1", 100)
    model, own, sparse, _ = train("on", "4x1", 100)
    assert sparse
    assert len({int(sum(mask.sum() for mask in step.values())) for step in own}) > 20  # events, each with new masks
    for before, now in zip(masks, own, strict=True):
        assert all(torch.equal(before[name], now[name]) for name in before)
    for ours, theirs in zip(model.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_progressive_masks_keep_less_and_less():
    more = {"pruning_type": "snip_momentum_progressive"}
    dense, masks, _, _ = train("off", "4x1", 20, **more)
    model, own, sparse, _ = train("on", "4x1", 20, **more)
    assert sparse
    for before, now in zip(masks, own, strict=True):
        assert all(torch.equal(before[name], now[name]) for name in before)
    for ours, theirs in zip(model.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


def test_layers_are_entered_and_left():
    model = tiny_bert(torch.float32)
    pruner = Pruner(model, config_of("4x1", 6), sparse_training="on")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kinds = [type(module) for module in model.modules()]
    keys = list(model.state_dict())
    handle = pruner.attach(optimizer)
    assert pruner.sparse_layers == []
    for _ in range(6):
        model(input_ids=torch.arange(6).view(2, 3), labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
    assert len(pruner.sparse_layers) == len(pruner.layers) == 13
    assert list(model.state_dict()) == keys
    assert {type(layer.module) for layer in pruner.layers} == {LinearMasked}
    assert [type(module) for module in copy.deepcopy(model).modules()] == kinds
    assert "in training 13 of 13 pruned layers multiplied what is kept alone" in str(pruner.report())
    handle.detach()
    assert [type(module) for module in model.modules()] == kinds
    assert "13 of 13" in str(pruner.report())


@pytest.mark.parametrize(
    ("pattern", "kind"), [("4x1", MaskedBlocks), ("1xchannel", MaskedChannels), ("channelx1", MaskedChannels)]
)
def test_whole_rows_and_columns_are_multiplied_as_such(pattern, kind):
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    pruner = Pruner(model, config_of(pattern, 6, exclude_head=False), sparse_training="on")
    optimizer = torch.optim.AdamW(model.parameters())
    handle = pruner.attach(optimizer)
    for _ in range(6):
        model(torch.randn(4, 16)).square().sum().backward()
        optimizer.step()
    assert [type(layer.kept) for layer in model] == [kind] * 2
    handle.detach()


@pytest.fixture
def slow(monkeypatch):
    """What a timing says, by the density it is of; and which were asked for."""
    asked = []

    def time_steps(rows, cols, unit, density, tokens, own, dtype):
        asked.append((rows, cols, unit, density, tokens))
        return {"dense_ms": 1.0, "packed_ms": 2 * density, "equal": True}  # faster up to a half

    class Cache(dict):
        def __init__(self, *_):
            pass

        def put(self, key, times):
            pass

    monkeypatch.setattr(sparse_training, "time_steps", time_steps)
    monkeypatch.setattr(sparse_training, "TimingCache", Cache)
    monkeypatch.setattr(sparse_training, "_LEAST", 1)
    return asked


@needs_compiler
def test_auto_takes_what_was_measured_to_be_faster(slow):
    _, masks, sparse, pruner = train("auto", "4x1", 10, torch.float32, pruning_scope="local")
    assert len(sparse) == 13
    assert {density for *_, density, _ in slow} >= {0.2, 0.6}
    assert {tokens for *_, tokens in slow} == {16, 4}  # 21, and the pooler's 3 rounded to powers of two
    kept = [float(sum(m.sum() for m in step.values()) / sum(m.numel() for m in step.values())) for step in masks]
    assert any(0.5 < share < 0.6 for share in kept)
    _, _, sparse, pruner = train("auto", "4x1", 10, torch.float64)
    assert sparse == []
    _, _, channels, _ = train("auto", "1xchannel", 10, torch.float64)
    assert len(channels) >= 12, "these need no kernel; the pooler may keep too much"
    assert {unit for _, _, unit, _, _ in slow} == {(4, 1), (1, 32), (1, 64)}
    assert "no kernel for float64" in str(pruner._sparse.notes) or pruner._sparse.notes == []


def test_auto_leaves_small_layers_alone(monkeypatch):
    monkeypatch.setattr(sparse_training, "masked_blocks", lambda *_: pytest.fail("looked for what is kept"))
    monkeypatch.setattr(sparse_training, "time_steps", lambda *_: pytest.fail("measured"))
    _, _, sparse, _ = train("auto", "4x1", 6, torch.float32)
    assert sparse == []


@pytest.mark.parametrize("unit", [(4, 1), (1, 32), (64, 1)])
def test_a_real_timing(unit):
    times = sparse_training.time_steps(64, 32, unit, 0.5, 16, torch.float32, torch.bfloat16)
    assert times["dense_ms"] > 0
    assert times["packed_ms"] > 0


class Odd(nn.Module):
    """Layers that must stay dense, and one that need not."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Linear(16, 16)
        self.read = nn.Linear(16, 16)  # its weight is read by name
        self.replaced = nn.Linear(16, 16)
        self.custom = type("Custom", (nn.Linear,), {})(16, 16)
        self.conv = nn.Conv1d(16, 16, 1)
        forward = self.replaced.forward
        self.replaced.forward = lambda x: forward(x)

    def forward(self, x):
        x = linear(self.plain(x), self.read.weight)
        return self.conv(self.custom(self.replaced(x)).unsqueeze(-1)).squeeze(-1)


def test_what_can_not_be_entered_stays_dense_and_the_report_says_so():
    model = Odd()
    pruner = Pruner(
        model,
        PruningConfig(pattern="4x1", target_sparsity=0.5, start_step=1, end_step=2, excluded_op_names=[]),
        sparse_training="on",
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pruner.attach(optimizer):
        for _ in range(3):
            model(torch.randn(4, 16)).square().sum().backward()
            optimizer.step()
        assert pruner.sparse_layers == ["plain", "read"]  # read is not called, so it makes no difference
        text = str(pruner.report())
    assert "in training dense: replaced: its forward was replaced" in text
    assert "in training dense: custom: it is a Custom, not nn.Linear itself" in text


def test_a_compiled_model_stays_dense():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model.compile(backend="eager")
    pruner = Pruner(
        model,
        PruningConfig(pattern="4x1", target_sparsity=0.5, start_step=0, end_step=0, pruning_type="magnitude"),
        sparse_training="on",
    )
    with pruner.attach(optimizer := torch.optim.SGD(model.parameters(), lr=0.1)):
        model(torch.randn(2, 16)).sum().backward()
        optimizer.step()
        assert {type(module) for module in model} == {nn.Linear}


@needs_compiler
def test_resuming_rounds_as_the_run_before(slow):
    """Which layers multiplied what is kept is part of the state."""
    steps, half = 12, 7

    def run(model, pruner, optimizer, first, last):
        with pruner.attach(optimizer):
            for step in range(first, last):
                ids = torch.randint(40, (3, 7), generator=torch.Generator().manual_seed(step))
                model(input_ids=ids, labels=ids[:, 0] % 2).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            return pruner.state_dict()

    def parts():
        model = tiny_bert(torch.float32)
        return model, Pruner(model, config_of("4x1", steps)), torch.optim.AdamW(model.parameters(), lr=1e-3)

    whole = parts()
    run(*whole, 0, steps)
    first = parts()
    saved = run(*first, 0, half)
    assert saved["sparse_layers"]
    second = parts()
    second[0].load_state_dict(first[0].state_dict())
    second[2].load_state_dict(first[2].state_dict())
    second[1].load_state_dict(saved)
    assert second[1].state_dict()["sparse_layers"] == saved["sparse_layers"]
    run(*second, half, steps)
    for ours, theirs in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)
    del saved["sparse_layers"]  # as an older version wrote it
    parts()[1].load_state_dict(saved)


def test_masks_from_an_earlier_step():
    """Loading a state into an attached Pruner brings back units that were pruned since."""
    model = tiny_bert(torch.float32)
    pruner = Pruner(model, config_of("4x1", 10), sparse_training="on")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step():
        model(input_ids=torch.arange(6).view(2, 3), labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()

    with pruner.attach(optimizer):
        for _ in range(5):
            step()
        weights, state = copy.deepcopy(model.state_dict()), pruner.state_dict()
        before = [layer.module.kept.density for layer in pruner.layers]
        for _ in range(5):
            step()
        assert sum(layer.module.kept.density for layer in pruner.layers) < sum(before)
        model.load_state_dict(weights)
        pruner.load_state_dict(state)
        assert [layer.module.kept.density for layer in pruner.layers] == before


def test_compressing_while_it_is_attached():
    model = tiny_bert(torch.float32)
    pruner = Pruner(model, config_of("4x1", 6), sparse_training="on")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pruner.attach(optimizer):
        for _ in range(6):
            model(input_ids=torch.arange(6).view(2, 3), labels=torch.tensor([0, 1])).loss.backward()
            optimizer.step()
        _, report = compress(model.eval(), prefer="memory", measure=False)
    assert sum(row.format != "dense" for row in report.layers) >= 12


def test_an_unknown_mode():
    with pytest.raises(PruningError, match="sparse_training: want auto, on, off, got 'yes'"):
        Pruner(
            tiny_bert(torch.float32),
            PruningConfig(target_sparsity=0.5, start_step=0, end_step=1),
            sparse_training="yes",
        )

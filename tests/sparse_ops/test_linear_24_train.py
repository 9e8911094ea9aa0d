"""The layer that trains packed, against the dense layer with its mask."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import linear as dense_linear

from trisparse.sparse_ops import Linear24Train, mask_24, nm_mask, nm_mask_2d


def step(layer, optimizer, x):
    y = layer(x)
    y.square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return y


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "straight through"])
@pytest.mark.parametrize("transposed", [True, False], ids=["both ways", "one way"])
def test_trains_like_the_masked_dense_layer(transposed, masked):
    layer = nn.Linear(20, 12)
    weight, bias = (p.detach().clone().requires_grad_() for p in layer.parameters())
    train = Linear24Train.from_linear(layer, transposed=transposed, masked=masked)
    mask = nm_mask_2d(weight) if transposed else nm_mask(weight, 2, 4, magnitude=True)
    assert torch.equal(mask_24(train.matrix), mask)
    assert train.weight is layer.weight
    mine, theirs = torch.optim.SGD(layer.parameters(), lr=0.01), torch.optim.SGD([weight, bias], lr=0.01)
    for _ in range(4):
        x = torch.randn(2, 5, 20, requires_grad=True)
        other = x.detach().clone().requires_grad_()
        y = step(train, mine, x)
        kept = weight * mask if masked else weight + (weight * mask - weight).detach()
        want = dense_linear(other, kept, bias)
        want.square().sum().backward()
        theirs.step()
        theirs.zero_grad()
        torch.testing.assert_close(y, want)
        torch.testing.assert_close(x.grad, other.grad)
        torch.testing.assert_close(layer.weight, weight)
        torch.testing.assert_close(layer.bias, bias)
    dense = train.to_linear()
    assert dense.weight is layer.weight
    assert not dense.weight[~mask].any()
    torch.testing.assert_close(dense(x), train(x))


def test_values_are_packed_only_when_the_weight_changed(monkeypatch):
    from trisparse.sparse_ops import linear_24_train

    times = []
    repack = linear_24_train.repack_24
    monkeypatch.setattr(linear_24_train, "repack_24", lambda *args: (times.append(1), repack(*args)))
    layer = nn.Linear(8, 8)
    train, x = Linear24Train.from_linear(layer), torch.randn(3, 8)
    train(x)
    train(x)
    assert len(times) == 0
    with torch.no_grad():
        layer.weight.mul_(2)
    y = train(x)
    train(x)
    assert len(times) == 1
    layer.weight.data = layer.weight.data.clone() * 0.5
    torch.testing.assert_close(train(x) - layer.bias, (y - layer.bias) / 2)
    assert len(times) == 2


def test_the_mask_is_fixed_or_refreshed():
    for every in (0, 3):
        torch.manual_seed(1)
        layer = nn.Linear(16, 16)
        train = Linear24Train.from_linear(layer, refresh_every=every, masked=False)
        masks = []
        for _ in range(7):
            with torch.no_grad():
                layer.weight.copy_(torch.randn(16, 16))
            train(torch.randn(1, 16))
            masks.append(mask_24(train.matrix))
        changed = [not torch.equal(a, b) for a, b in itertools.pairwise(masks)]
        assert changed == ([False] * 6 if not every else [False, True, False, False, True, False])
    train.refresh()
    assert torch.equal(mask_24(train.matrix), nm_mask_2d(layer.weight.detach()))


def test_a_given_mask():
    layer, mask = nn.Linear(8, 4, bias=False), nm_mask(torch.rand(4, 8), 2, 4)
    train = Linear24Train.from_linear(layer, mask=mask, transposed=False)
    x = torch.randn(2, 8)
    torch.testing.assert_close(train(x), x @ layer.weight.where(mask, 0).t())
    with pytest.raises(ValueError, match="refresh_every: want 0 with a mask, else 0 or more, got 5"):
        Linear24Train.from_linear(layer, mask=mask, transposed=False, refresh_every=5)
    with pytest.raises(ValueError, match="refresh_every: want 0 with a mask, else 0 or more, got -1"):
        Linear24Train.from_linear(layer, refresh_every=-1)


def test_a_backward_after_the_weight_changed_is_an_error():
    layer = nn.Linear(8, 8)
    train, x = Linear24Train.from_linear(layer), torch.randn(3, 8, requires_grad=True)
    y = train(x)
    with torch.no_grad():
        layer.weight.mul_(2)
    train(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_mixed_precision():
    layer, x = nn.Linear(16, 8), torch.randn(4, 16)
    train = Linear24Train.from_linear(layer, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        y = train(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.weight.grad.dtype == layer.bias.grad.dtype == torch.float32
    with pytest.raises(TypeError, match="x: want torch.bfloat16 like the packed values, got torch.float32"):
        train(x)


@pytest.mark.parametrize("layout", ["bitmask", "cslt_sm80"])
def test_state_goes_between_layouts(layout):
    one = Linear24Train.from_linear(nn.Linear(20, 12), layout="cslt_sm90")
    other = Linear24Train.from_linear(nn.Linear(20, 12), layout=layout)
    state = one.state_dict()
    assert list(state["patterns"].shape) == [3, 5]
    other.load_state_dict(state)
    x = torch.randn(3, 20)
    assert torch.equal(other(x), one(x))
    assert torch.equal(other.matrix.patterns[:3, :5], one.matrix.patterns[:3, :5])
    with pytest.raises(RuntimeError, match=r"patterns: want \[3, 5\], got \[2, 5\]"):
        other.load_state_dict({**state, "patterns": state["patterns"][:2]})
    del state["patterns"]
    with pytest.raises(RuntimeError, match='Missing key.*"patterns"'):
        other.load_state_dict(state)


def test_copies_and_dtypes():
    train = Linear24Train.from_linear(nn.Linear(16, 8))
    twin, x = copy.deepcopy(train), torch.randn(2, 16)
    assert torch.equal(twin(x), train(x))
    half = twin.bfloat16()
    assert half(x.bfloat16()).dtype == torch.bfloat16
    mixed = Linear24Train.from_linear(nn.Linear(16, 8), dtype=torch.bfloat16).double()
    assert mixed.dtype == torch.bfloat16


def test_compiles_whole():
    torch.manual_seed(0)
    layer = nn.Linear(16, 8)
    train = Linear24Train.from_linear(layer)
    compiled = torch.compile(train, fullgraph=True, backend="aot_eager")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(3):
        x = torch.randn(4, 16)
        want = x @ layer.weight.detach().where(mask_24(train.matrix), 0).t() + layer.bias.detach()
        torch.testing.assert_close(step(compiled, optimizer, x), want)
    counting = torch.compile(
        Linear24Train.from_linear(nn.Linear(16, 8), refresh_every=2), fullgraph=True, backend="aot_eager"
    )
    with pytest.raises(Exception, match="refresh_every cannot count inside torch.compile"):
        counting(x)

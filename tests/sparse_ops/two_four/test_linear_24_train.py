"""The layer that trains packed, against the dense layer with its mask."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import linear as dense_linear

from trisparse.sparse_ops import Linear24Train, nm_mask, nm_mask_2d, refresh_every


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
    assert torch.equal(train.mask(), mask)
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


@pytest.mark.parametrize("fused", [True, False])
def test_follows_the_weight_however_it_changes(fused):
    layer, x = nn.Linear(8, 8), torch.randn(3, 8)
    train = Linear24Train.from_linear(layer)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=fused)

    def check():
        torch.testing.assert_close(train(x), dense_linear(x, layer.weight.where(train.mask(), 0), layer.bias))

    for _ in range(3):
        step(train, optimizer, x)  # fused, it leaves the weight's version as it was
        check()
    layer.weight.data.mul_(3)
    check()
    layer.weight.data = torch.randn(8, 8)
    check()
    weight = torch.randn(8, 8)
    y = torch.func.functional_call(train, {"weight": weight}, x)
    torch.testing.assert_close(y, dense_linear(x, weight.where(train.mask(), 0), layer.bias))


def test_twice_in_one_graph_and_over_batches():
    layer = nn.Linear(8, 8)
    train, mask = Linear24Train.from_linear(layer), nm_mask_2d(layer.weight.detach())
    x = torch.randn(3, 8)
    (train(train(x)).sum() + train(2 * x).sum()).backward()
    weight = (layer.weight.detach() * mask).requires_grad_()
    bias = layer.bias.detach().requires_grad_()
    twice = dense_linear(dense_linear(x, weight, bias), weight, bias)
    (twice.sum() + dense_linear(2 * x, weight, bias).sum()).backward()
    torch.testing.assert_close(layer.weight.grad, weight.grad * mask)
    torch.testing.assert_close(layer.bias.grad, bias.grad)


def test_the_mask_is_fixed_or_refreshed():
    layer = nn.Linear(16, 16)
    train = Linear24Train.from_linear(layer, masked=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    handle = refresh_every(optimizer, train, 3, step=1)
    where, masks = train.patterns.data_ptr(), [train.mask()]
    for _ in range(6):
        layer.weight.data.normal_()
        step(train, optimizer, torch.randn(1, 16))
        masks.append(train.mask())
    changed = [not torch.equal(a, b) for a, b in itertools.pairwise(masks)]
    assert changed == [False, True, False, False, True, False]  # after the third and the sixth step of all
    assert train.patterns.data_ptr() == where
    handle.remove()
    layer.weight.data.normal_()
    train.refresh()
    assert torch.equal(train.mask(), nm_mask_2d(layer.weight.detach()))
    with pytest.raises(ValueError, match="want at least 1 step and 1 Linear24Train, got 0 and 1"):
        refresh_every(optimizer, train, 0)
    with pytest.raises(ValueError, match="got 1 and 0"):
        refresh_every(optimizer, layer, 1)


def test_a_given_mask():
    layer, mask = nn.Linear(8, 4, bias=False), nm_mask(torch.rand(4, 8), 2, 4)
    train = Linear24Train.from_linear(layer, mask=mask, transposed=False)
    x = torch.randn(2, 8)
    torch.testing.assert_close(train(x), x @ layer.weight.where(mask, 0).t())
    with pytest.raises(ValueError, match="got 8 groups with more, the first in row 0"):
        Linear24Train.from_linear(layer, mask=mask | True, transposed=False)


def test_mixed_precision():
    layer, x = nn.Linear(16, 8), torch.randn(4, 16)
    train = Linear24Train.from_linear(layer)
    with torch.autocast("cpu", torch.bfloat16):
        y = train(x)
        want = dense_linear(x, layer.weight.where(train.mask(), 0), layer.bias)
    assert torch.equal(y, want)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.weight.grad.dtype == layer.bias.grad.dtype == torch.float32
    assert train(x).dtype == torch.float32
    with pytest.raises(TypeError, match="x: want torch.float32 like the packed values, got torch.bfloat16"):
        train(x.bfloat16())


@pytest.mark.parametrize("layout", ["bitmask", "cslt_sm80"])
def test_state_goes_between_layouts(layout):
    one = Linear24Train.from_linear(nn.Linear(20, 10), transposed=False, layout="cslt_sm90")
    other = Linear24Train.from_linear(nn.Linear(20, 10), transposed=False, layout=layout)
    state = one.state_dict()
    assert (state["patterns"].dtype, list(state["patterns"].shape)) == (torch.uint8, [3, 10])
    other.load_state_dict(state)
    x = torch.randn(3, 20)
    torch.testing.assert_close(other(x), one(x))
    assert torch.equal(other.mask(), one.mask())


def test_damaged_state_is_refused():
    train = Linear24Train.from_linear(nn.Linear(20, 12))
    state, before = train.state_dict(), train.mask()
    one_way = Linear24Train.from_linear(nn.Linear(20, 12), transposed=False).state_dict()
    for patterns, message in [
        (torch.full_like(state["patterns"], 255), "patterns: want at most 2 of every 4 kept, got 60 groups with more"),
        (state["patterns"][:2], "size mismatch for patterns"),
        (one_way["patterns"], "patterns: want at most 2 of every 4 kept, .* in column"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            train.load_state_dict({**state, "patterns": patterns})
        assert torch.equal(train.mask(), before)
    del state["patterns"]
    with pytest.raises(RuntimeError, match='Missing key.*"patterns"'):
        train.load_state_dict(state)


def test_copies_dtypes_and_devices():
    train = Linear24Train.from_linear(nn.Linear(16, 8))
    twin, x, mask = copy.deepcopy(train), torch.randn(2, 16), train.mask()
    assert torch.equal(twin(x), train(x))
    for change in (nn.Module.bfloat16, nn.Module.half, nn.Module.double, lambda m: m.type(torch.float32)):
        change(twin)
        assert twin(x.to(twin.weight.dtype)).dtype == twin.weight.dtype
        assert torch.equal(twin.mask(), mask)
    assert twin.to("meta")(x.to("meta")).shape == (2, 8)


def test_compiles_whole():
    torch.manual_seed(0)
    layer = nn.Linear(16, 8)
    train = Linear24Train.from_linear(layer)
    compiled = torch.compile(train, fullgraph=True, backend="aot_eager")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(3):
        x = torch.randn(4, 16)
        want = x @ layer.weight.detach().where(train.mask(), 0).t() + layer.bias.detach()
        torch.testing.assert_close(step(compiled, optimizer, x), want)

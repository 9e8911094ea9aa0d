"""A linear layer that multiplies with what a mask keeps: as the dense layer does with a weight that is zero elsewhere."""

import copy
import pickle

import pytest
import torch
import torch.fx
import torch.nn.utils.parametrize
from torch import nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from trisparse.sparse_ops.blocks.linear_masked import LinearMasked, _Product, mask_linear, unmask_linear
from trisparse.sparse_ops.blocks.masked_blocks import gather_values, masked_blocks, scatter_values
from trisparse.sparse_ops.blocks.masked_channels import MaskedChannels, channel_linear, masked_channels

CHANNELS = [(1, 32), (48, 1), (4, 32), (48, 8), (48, 32)]  # whole rows or columns, and both
UNITS = [(1, 1), (2, 1), (4, 1), (12, 1), (16, 16), (1, 4), (8, 8), *CHANNELS]


def layers(unit=(4, 1), rows=48, cols=32, density=0.4, dtype=torch.float64, bias=True):
    """A dense layer whose weight is zero where a mask prunes, the same as LinearMasked, and the mask of its weights."""
    n, m = unit
    dense = nn.Linear(cols, rows, bias, dtype=dtype)
    mask = torch.rand(rows // n, cols // m) < density
    wide = mask.repeat_interleave(n, 0).repeat_interleave(m, 1)
    dense.weight.data *= wide
    masked = mask_linear(copy.deepcopy(dense))
    masked.kept = masked_channels(mask, unit) if unit in CHANNELS else masked_blocks(mask, unit, dtype)
    return dense, masked, wide


def gradients(layer, x, upstream):
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(upstream)
    found = y.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())
    layer.zero_grad()
    return found


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_products_and_gradients(unit, density, dtype):
    torch.manual_seed(0)
    dense, masked, wide = layers(unit, density=density, dtype=dtype)
    x, upstream = torch.randn(3, 50, 32).to(dtype), torch.randn(3, 50, 48).to(dtype)
    y, grad_x, grad_weight, grad_bias = gradients(masked, x, upstream)
    want = gradients(dense, x, upstream)
    tolerance = {"rtol": 2e-2, "atol": 2e-1} if dtype is torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(y, want[0], **tolerance)
    torch.testing.assert_close(grad_x, want[1], **tolerance)
    torch.testing.assert_close(grad_weight, want[2] * wide, **tolerance)
    torch.testing.assert_close(grad_bias, want[3], **tolerance)
    assert not grad_weight[~wide].any()


@pytest.mark.parametrize("unit", [(1, 1), (4, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck_to_the_second_order(unit, bias):
    _, masked, wide = layers(unit, rows=8, cols=6, bias=bias)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    values = list(masked.parameters())

    def kept_alone(x, weight, bias=None):  # what is pruned is zero, and no variable
        return _Product.apply(x, weight * wide, bias, masked.kept, torch.float64)

    assert torch.autograd.gradcheck(kept_alone, (x, *values))
    assert torch.autograd.gradgradcheck(kept_alone, (x, *values))


@pytest.mark.parametrize("unit", [(1, 6), (8, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck_of_channels(unit, bias):
    layer = nn.Linear(6, 8, bias, dtype=torch.float64)
    kept = masked_channels(torch.rand(8 // unit[0], 6 // unit[1]) < 0.5, unit)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)

    def product(x, weight, bias=None):
        return channel_linear(x, weight, bias, kept)

    assert torch.autograd.gradcheck(product, (x, *layer.parameters()))
    assert torch.autograd.gradgradcheck(product, (x, *layer.parameters()))


def test_which_channels_are_kept():
    mask = torch.tensor([[True], [False], [True]])
    rows = masked_channels(mask, (2, 5))
    assert (rows.shape, rows.dim, rows.channels.tolist()) == ((6, 5), 0, [0, 1, 4, 5])
    assert rows.density == pytest.approx(2 / 3)
    columns = masked_channels(mask.t(), (7, 1))
    assert (columns.shape, columns.dim, columns.channels.tolist()) == ((7, 3), 1, [0, 2])
    assert columns.density == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="block: want whole rows or columns of 6 x 4, got 2 x 2"):
        masked_channels(torch.ones(3, 2, dtype=torch.bool), (2, 2))


@pytest.mark.parametrize("unit", [(1, 32), (48, 1)])
def test_channels_of_inputs_of_any_rank(unit):
    dense, masked, _ = layers(unit, dtype=torch.float32)
    assert isinstance(masked.kept, MaskedChannels)
    for shape in ((32,), (5, 32), (0, 32), (2, 0, 32), (2, 3, 4, 32)):
        x = torch.randn(shape)
        torch.testing.assert_close(masked(x), dense(x))


def test_values_and_back():
    _, masked, wide = layers((4, 1), dtype=torch.float32)
    for kept in (masked.kept, layers((1, 1), dtype=torch.float32)[1].kept):
        weight = torch.randn(48, 32)
        matrix = gather_values(weight, kept.matrix)
        again = scatter_values(matrix.values, kept.matrix)
        ones = scatter_values(torch.ones_like(matrix.values), kept.matrix)
        assert torch.equal(again, weight * ones)
        for half in (torch.bfloat16, torch.float64):
            own = masked_blocks(wide[::4], (4, 1), half).matrix
            assert torch.equal(scatter_values(gather_values(weight.to(half), own).values, own), weight.to(half) * wide)


def test_what_needs_no_gradient_gets_none():
    _, masked, _ = layers(dtype=torch.float32)
    masked(torch.randn(5, 32)).sum().backward()  # an input that needs none
    assert masked.weight.grad is not None
    masked.zero_grad()
    masked.weight.requires_grad_(False)
    x = torch.randn(5, 32, requires_grad=True)
    masked(x).sum().backward()
    assert masked.weight.grad is None
    assert x.grad is not None


def test_evaluation_multiplies_with_all_of_the_weight():
    """Which may hold anything by then: an average of weights, say, or what was loaded."""
    _, masked, _ = layers(dtype=torch.float32)
    masked.weight.data.normal_()
    x = torch.randn(5, 32)
    assert torch.equal(masked.eval()(x), linear(x, masked.weight, masked.bias))


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_are_plain_layers(copied):
    _, masked, _ = layers(dtype=torch.float32)
    other = copied(masked)
    assert type(other) is nn.Linear
    assert not {"kept", "tokens"} & vars(other).keys()
    assert torch.equal(other.weight, masked.weight)
    assert type(masked) is LinearMasked


def test_it_is_the_same_layer_afterwards():
    dense = nn.Linear(8, 4)
    before, calls = dict(vars(dense)), []
    dense.register_forward_hook(lambda *_: calls.append(1))
    masked = mask_linear(dense)
    assert masked is dense
    masked.kept = masked_blocks(torch.zeros(1, 8, dtype=torch.bool), (4, 1), torch.float32)
    assert torch.equal(masked(torch.randn(2, 8)), masked.bias.expand(2, 4))
    assert "multiplied=0.0000" in repr(masked)
    assert masked.state_dict().keys() == {"weight", "bias"}
    unmask_linear(masked)
    assert type(dense) is nn.Linear
    assert vars(dense).keys() == before.keys()
    assert calls == [1]
    with pytest.raises(TypeError, match="want an nn.Linear itself, got Bilinear"):
        mask_linear(nn.Bilinear(2, 2, 2))


@pytest.mark.parametrize("unit", [(4, 1), (1, 32), (48, 1)])
def test_autocast(unit):
    dense, masked, wide = layers(unit, dtype=torch.float32)
    x, upstream = torch.randn(40, 32), torch.randn(40, 48).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found, want = gradients(masked, x, upstream), gradients(dense, x, upstream)
    assert [t.dtype for t in found] == [t.dtype for t in want]
    for got, expected in zip(found, (want[0], want[1], want[2] * wide, want[3]), strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-1)
    with torch.autocast("cpu", torch.float16):  # for blocks there is no kernel
        torch.testing.assert_close(masked(x), dense(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("create_graph", [True, False])
def test_gradients_are_not_rounded_by_an_autocast_around_backward(create_graph):
    _, masked, _ = layers(dtype=torch.float32)
    x = torch.randn(40, 32, requires_grad=True)
    found = []
    for enabled in (False, True):
        y, inputs = masked(x), (x, *masked.parameters())
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(torch.autograd.grad(y.square().sum(), inputs, create_graph=create_graph))
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    dense, masked, wide = layers(dtype=torch.float32)
    x = torch.randn(5, 32, requires_grad=True)
    checkpoint(masked, x, use_reentrant=reentrant).sum().backward()
    dense(x).sum().backward()
    torch.testing.assert_close(masked.weight.grad, dense.weight.grad * wide)


def test_accumulation_and_a_weight_in_two_places():
    dense, masked, wide = layers(dtype=torch.float32)
    for layer in (dense, masked):
        x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
        for part in (x[:2], x[2:]):
            (layer(part).sum() + linear(part, layer.weight).square().sum()).backward()  # also read by a dense product
    torch.testing.assert_close(masked.weight.grad[wide], dense.weight.grad[wide], rtol=1e-4, atol=1e-4)


def test_compilers_and_transforms_see_a_dense_layer():
    dense, masked, _ = layers(dtype=torch.float32)
    x = torch.randn(3, 32)
    torch.testing.assert_close(torch.compile(masked, backend="eager", fullgraph=True)(x), dense(x))
    torch.testing.assert_close(torch.vmap(masked)(x), dense(x))
    torch.testing.assert_close(torch.func.jvp(masked, (x,), (x,))[1], torch.func.jvp(dense, (x,), (x,))[1])
    traced = torch.export.export(masked, (x,))
    torch.testing.assert_close(traced.module()(x), dense(x))


def test_another_weight_in_its_place_is_multiplied_whole():
    _, masked, _ = layers(dtype=torch.float32)
    x, other = torch.randn(3, 32), torch.randn(48, 32)
    y = torch.func.functional_call(masked, {"weight": other}, (x,))
    assert torch.equal(y, linear(x, other, masked.bias))
    y = torch.func.functional_call(masked, {"weight": nn.Parameter(other)}, (x,))
    assert torch.equal(y, linear(x, other, masked.bias)), "a dense teacher's, say"
    masked.weight = nn.Parameter(torch.randn(40, 32))  # of another size, as after channels were removed
    masked.bias = None
    assert torch.equal(masked(x), linear(x, masked.weight))


@pytest.mark.parametrize("unit", [(4, 1), (1, 32), (48, 1)])
@pytest.mark.parametrize("width", [31, 33])
def test_an_input_of_another_width_is_refused_as_by_a_dense_layer(unit, width):
    dense, masked, _ = layers(unit, dtype=torch.float32)
    x = torch.randn(3, width)
    with pytest.raises(RuntimeError) as want:
        dense(x)
    with pytest.raises(RuntimeError) as got:
        masked(x)
    assert str(got.value) == str(want.value)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_what_is_parametrized_is_what_it_is(name):
    _, masked, _ = layers(dtype=torch.float32)
    x = torch.randn(3, 32)
    nn.utils.parametrize.register_parametrization(masked, name, Doubled())
    torch.testing.assert_close(masked(x), linear(x, masked.weight, masked.bias))


class Doubled(nn.Module):
    def forward(self, tensor):
        return 2 * tensor


def test_a_tracer_sees_a_dense_layer():
    dense, masked, _ = layers(dtype=torch.float32)
    x = torch.randn(3, 32)
    torch.testing.assert_close(torch.fx.symbolic_trace(masked)(x), dense(x))
    assert masked.tokens == 0


def test_a_weight_changed_in_between_is_an_error():
    _, masked, _ = layers(dtype=torch.float32)
    x = torch.randn(3, 32, requires_grad=True)
    y = masked(x)
    with torch.no_grad():
        masked.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_what_no_gradient_is_made_of_may_change_in_between():
    _, masked, _ = layers(dtype=torch.float32)
    x = torch.randn(3, 32)
    y = masked(x)
    with torch.no_grad():
        masked.weight.mul_(2)
    y.sum().backward()
    masked.weight.requires_grad_(False)
    x.requires_grad_()
    z = x * 1
    y = masked(z)
    z.mul_(2)
    y.sum().backward()

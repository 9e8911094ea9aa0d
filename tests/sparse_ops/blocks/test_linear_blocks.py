"""A layer packed in vectors or blocks in place of `nn.Linear`."""

import copy
import io

import pytest
import torch
import torch.nn.utils.parametrize
from torch import nn

from trisparse.sparse_ops import Linear24, LinearBlocks

BLOCKS = [((4, 1), None), ((16, 1), 4), ((32, 32), None)]


def pruned(block=(4, 1), run=None, rows=72, cols=100, dtype=torch.float32, bias=True):
    linear = nn.Linear(cols, rows, bias, dtype=dtype)
    n, m = run or block[0], block[1]
    kept = (torch.rand(-(-rows // n), -(-cols // m)) < 0.3).repeat_interleave(n, 0).repeat_interleave(m, 1)
    with torch.no_grad():
        linear.weight *= kept[:rows, :cols]
    return linear


@pytest.fixture(params=BLOCKS, ids=str)
def pair(request):
    """A dense layer and the same packed."""
    linear = pruned(*request.param)
    return linear, LinearBlocks.from_linear(linear, request.param[0], run=request.param[1])


def test_the_same_outputs_and_back(pair):
    linear, packed = pair
    x = torch.randn(2, 3, 100)
    torch.testing.assert_close(packed(x), linear(x))
    back = packed.to_linear()
    assert torch.equal(back.weight, linear.weight)
    assert torch.equal(back.bias, linear.bias)
    assert back.bias.data_ptr() != packed.bias.data_ptr()
    assert not any(p.requires_grad for p in packed.parameters())


def test_without_bias_and_of_another_dtype():
    linear = pruned(bias=False, dtype=torch.bfloat16)
    packed = LinearBlocks.from_linear(linear, (4, 1))
    x = torch.randn(3, 100).bfloat16()
    assert torch.equal(packed(x), linear(x))
    half = packed.half()
    assert half.values.dtype == torch.float16
    assert torch.equal(half.matrix.columns, LinearBlocks.from_linear(linear, (4, 1)).matrix.columns)
    assert half(x.half()).dtype == torch.float16
    with torch.autocast("cpu", torch.bfloat16):
        assert packed(torch.randn(3, 100)).dtype == torch.float16


def test_state_dict(pair):
    linear, packed = pair
    state = packed.state_dict()
    assert set(state) == {"values", "columns", "pointers", "order", "bias"}
    assert state["columns"].dtype == torch.int16
    other = LinearBlocks(100, 72, block=packed.block, run=packed.run)
    other.load_state_dict(state)
    x = torch.randn(3, 100)
    torch.testing.assert_close(other(x), linear(x))
    state["values"].zero_()
    torch.testing.assert_close(other(x), linear(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("order"), 'Missing key.*"0.order"'),
        (lambda s: s.update(columns=s["columns"] + 1000), "0: columns: does not fit a matrix"),
        (lambda s: s.update(columns=s["columns"].long()), "0: columns, pointers, order: want int16"),
        (lambda s: s.update(pointers=s["pointers"] * 2), "0: pointers"),
        (lambda s: s.update(values=s["values"][:, :2]), r"0: values: want \[slots, 4, 1\]"),
        (lambda s: s.update(values=s["values"][16:]), "0: columns, pointers"),
        (lambda s: s.update(other=s["bias"]), 'Unexpected key.*"0.other"'),
    ],
)
def test_a_damaged_state_is_refused(change, message):
    packed = nn.Sequential(LinearBlocks.from_linear(pruned(), (4, 1)))
    x = torch.randn(1, 100)
    before, state = packed(x), packed[0].state_dict()
    change(state)
    with pytest.raises(RuntimeError, match=message):
        packed.load_state_dict({f"0.{name}": value for name, value in state.items()})
    if "other" not in state and "order" in state:
        assert torch.equal(packed(x), before)


@pytest.mark.parametrize("transposed", [True, False])
def test_trains_what_is_stored(transposed):
    linear = pruned((16, 1), 4)
    packed = LinearBlocks.from_linear(linear, (16, 1), run=4, transposed=transposed).requires_grad_()
    dense = copy.deepcopy(linear)
    x = torch.randn(5, 100, requires_grad=True)
    optimizer = torch.optim.SGD(packed.parameters(), lr=0.01)
    optimizer_dense = torch.optim.SGD(dense.parameters(), lr=0.01)
    stored = LinearBlocks.from_linear(linear, (16, 1), run=4)
    stored.values.data.fill_(1)
    for _ in range(3):
        for layer, chosen in ((packed, optimizer), (dense, optimizer_dense)):
            chosen.zero_grad()
            layer(x).square().sum().backward()
            chosen.step()
        with torch.no_grad():
            dense.weight *= stored.to_linear().weight != 0
    torch.testing.assert_close(packed.to_linear().weight, dense.weight)
    torch.testing.assert_close(packed.bias, dense.bias)
    assert not packed.values[packed.matrix.columns < 0].any()


def test_copies_moves_and_compiles(pair):
    linear, packed = pair
    x = torch.randn(3, 100)
    torch.testing.assert_close(copy.deepcopy(packed)(x), linear(x))
    assert packed.to("meta")(x.to("meta")).shape == (3, 72)
    compiled = torch.compile(
        LinearBlocks.from_linear(linear, packed.block, run=packed.run), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(x), linear(x))


def test_exports(pair):
    linear, packed = pair
    x = torch.randn(3, 100)
    program = torch.export.export(nn.Sequential(packed, nn.ReLU()), (x,))
    torch.testing.assert_close(program.module()(x), linear(x).relu())
    loaded = LinearBlocks(100, 72, block=packed.block, run=packed.run)
    loaded.load_state_dict(packed.state_dict())
    file = io.BytesIO()
    torch.export.save(torch.export.export(nn.Sequential(loaded, nn.ReLU()), (x,)), file)
    torch.testing.assert_close(torch.export.load(file).module()(x), linear(x).relu())
    sizes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
    dynamic = torch.export.export(nn.Sequential(packed), (torch.stack([x, x]),), dynamic_shapes=(sizes,)).module()
    more = torch.randn(5, 7, 100)
    assert torch.equal(dynamic(more), packed(more))
    assert "extra_repr" not in repr(packed)
    assert "block=" in repr(packed)


def test_an_index_that_something_wrote_to_is_not_read():
    """As an average of buffers does, which takes whole numbers for measurements."""
    layer = LinearBlocks.from_linear(nn.Linear(64, 64), (4, 1))
    x = torch.randn(2, 64)
    layer(x)
    layer.columns.view(torch.int16).add_(7000)
    with pytest.raises(ValueError, match="columns"):
        layer(x)


def test_forward_mode_derivatives_and_negated_views():
    layer = LinearBlocks.from_linear(nn.Linear(64, 64), (4, 1))
    x = torch.randn(3, 64)
    with pytest.raises(RuntimeError, match=r"spmm: has no forward-mode derivative \(jvp, jacfwd\); use reverse mode"):
        torch.func.jvp(layer, (x,), (x,))
    torch.testing.assert_close(layer(torch._neg_view(x)), layer(-x))


@pytest.mark.parametrize("how", ["assigned", "given"])
def test_other_values_are_looked_at_before_they_are_read(how):
    layer = LinearBlocks.from_linear(nn.Linear(64, 64), (4, 1))
    x, few = torch.randn(2, 64), torch.ones(1, 4, 1)
    layer(x)
    if how == "assigned":
        layer.values = nn.Parameter(few, requires_grad=False)
    with pytest.raises(ValueError, match="columns, pointers"):
        layer(x) if how == "assigned" else torch.func.functional_call(layer, {"values": few}, (x,))


class Doubled(nn.Module):
    def forward(self, tensor):
        return 2 * tensor


@pytest.mark.parametrize("make", [lambda linear: LinearBlocks.from_linear(linear, (4, 1)), Linear24.from_linear])
def test_a_bias_that_is_computed_is_computed_anew(make):
    linear = nn.Linear(64, 64)
    linear.weight.data[:, ::2] = 0
    layer, x = make(linear), torch.randn(2, 64)
    nn.utils.parametrize.register_parametrization(layer, "bias", Doubled())
    for value in (1.0, 100.0):
        layer.parametrizations.bias.original.data.fill_(value)
        torch.testing.assert_close(layer(x), nn.functional.linear(x, linear.weight) + 2 * value)


def test_on_a_default_device_all_of_it_is():
    with torch.device("meta"):
        layer = LinearBlocks(8, 8)
    assert {tensor.device.type for tensor in layer.state_dict().values()} == {"meta"}

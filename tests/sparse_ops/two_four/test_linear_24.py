"""The packed layer for inference."""

import copy

import pytest
import torch
from torch import nn

from trisparse.sparse_ops import Linear24, layout_24, nm_mask
from trisparse.sparse_ops.two_four import linear_24


@pytest.fixture
def linear():
    layer = nn.Linear(20, 12).bfloat16()
    with torch.no_grad():
        layer.weight.mul_(nm_mask(layer.weight, 2, 4, magnitude=True))
    return layer


@pytest.fixture
def x():
    return torch.randn(3, 5, 20).bfloat16()


def test_computes_what_the_dense_layer_does_and_back(linear, x):
    packed = Linear24.from_linear(linear)
    assert torch.equal(packed(x), linear(x))
    assert packed.packed.numel() == 64 * 64 * 2 * 9 // 16
    back = packed.to_linear()
    assert torch.equal(back.weight, linear.weight)
    assert torch.equal(back.bias, linear.bias)
    assert back.weight.requires_grad
    assert "in_features=20, out_features=12, bias=True, dtype=torch.bfloat16, layout=bitmask" in repr(packed)


def test_without_bias_and_by_a_mask(x):
    layer = nn.Linear(20, 12, bias=False).bfloat16()
    mask = nm_mask(torch.rand(12, 20), 2, 4)
    packed = Linear24.from_linear(layer, mask, "cslt_sm90")
    assert torch.equal(packed(x), nn.functional.linear(x, layer.weight.where(mask, 0)))
    assert list(packed.state_dict()) == ["values", "bitmask"]
    assert packed.to_linear().bias is None


def test_a_weight_that_is_not_24_is_refused():
    with pytest.raises(
        ValueError, match="weight: want at most 2 of every 4 kept, got 60 groups with more, the first in row 0"
    ):
        Linear24.from_linear(nn.Linear(20, 12))
    with pytest.raises(ValueError, match=r"weight: want \[rows, cols\], cols a multiple of 4, got \[12, 18\]"):
        Linear24.from_linear(nn.Linear(18, 12))


@pytest.mark.parametrize("layout", ["cutlass_sm80", "cslt_sm80", "cslt_sm90"])
def test_state_goes_between_layouts(linear, x, layout):
    linear.weight.data[0, :4] = 0  # places that are stored, though nothing was kept
    one = Linear24.from_linear(linear)
    state = one.state_dict()
    assert {name: list(t.shape) for name, t in state.items()} == {"bias": [12], "values": [12, 10], "bitmask": [12, 3]}
    other = Linear24.from_linear(nn.Linear(20, 12).bfloat16(), torch.zeros(12, 20).bool(), layout)
    other.load_state_dict(state)
    assert torch.equal(other(x), linear(x))
    assert all(torch.equal(t, state[name]) for name, t in other.state_dict().items())


def test_the_bitmask_is_that_of_compressed_tensors():
    layer = nn.Linear(12, 1, bias=False)
    layer.weight.data = torch.tensor([[0, 5.0, 0, 7, 2, 0, 0, 3, 1, 1, 0, 0]])
    state = Linear24.from_linear(layer).state_dict()
    assert state["bitmask"].tolist() == [[0b10011010, 0b0011]]
    assert state["values"].tolist() == [[5, 7, 2, 3, 1, 1]]


def test_damaged_state_is_refused(linear):
    packed = Linear24.from_linear(linear)
    state = packed.state_dict()
    before = packed.packed.clone()
    for name, value, message in [
        ("bitmask", torch.full_like(state["bitmask"], 0b111), "bitmask: want 2 of every 4 bits set"),
        ("values", state["values"][:, :5], r"values: want \[12, 10\], got \[12, 5\]"),
        ("bitmask", state["bitmask"][:2], r"bitmask: want \[12, 3\], got \[2, 3\]"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            packed.load_state_dict({**state, name: value})
    with pytest.raises(RuntimeError, match='Missing key.*"values"'):
        packed.load_state_dict({"bias": state["bias"], "bitmask": state["bitmask"]})
    assert torch.equal(packed.packed, before)


def test_made_empty_to_be_loaded(linear, x):
    empty = Linear24(20, 12, dtype=torch.bfloat16, layout="cslt_sm90")
    assert not empty(x).any()
    where = empty.packed.data_ptr()
    empty.load_state_dict(Linear24.from_linear(linear).state_dict())
    assert torch.equal(empty(x), linear(x))
    assert empty.packed.data_ptr() == where
    meta = Linear24(20, 12, device="meta", dtype=torch.bfloat16)
    assert meta(x.to("meta")).shape == (3, 5, 12)
    assert Linear24.from_linear(linear).to("meta").half().dtype == torch.float16


def test_a_change_of_dtype_spares_the_metadata(linear, x):
    packed = nn.Sequential(Linear24.from_linear(linear, layout="cslt_sm90"))
    half = copy.deepcopy(packed).half()
    torch.testing.assert_close(half(x.half()), copy.deepcopy(linear).half()(x.half()))
    half[0].type(torch.bfloat16)
    torch.testing.assert_close(half(x), copy.deepcopy(linear)(x))
    torch.testing.assert_close(packed.double()(x.double()), linear.double()(x.double()))


def test_another_kind_of_device_has_another_layout(linear, x, monkeypatch):
    packed = Linear24.from_linear(linear, layout="cslt_sm90")
    monkeypatch.setattr(linear_24, "layout_24", lambda device: "bitmask" if device.type == "cpu" else "cslt_sm90")
    packed.to("cpu")
    assert packed.layout == "cslt_sm90"  # the same kind: nothing to do
    assert layout_24("cpu") == "bitmask"


def test_autocast(linear, x):
    packed = Linear24.from_linear(linear)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(packed(x.float()), linear(x))
    with pytest.raises(TypeError, match="x: want torch.bfloat16 like the packed values, got torch.float32"):
        packed(x.float())


def test_compiles_whole(linear, x):
    packed = Linear24.from_linear(linear)
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), packed(x))

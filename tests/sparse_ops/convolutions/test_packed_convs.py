"""Packed convolutions against torch's own: outputs, how they lie in memory, gradients, the way back."""

import copy
import io

import pytest
import torch
from torch import nn

from trisparse.sparse_ops import Conv24, ConvBlocks
from trisparse.sparse_ops.convolutions import windows
from trisparse.sparse_ops.convolutions.packed_convs import as_matrix, is_channels_last

CONVS = {
    "1x1": lambda **k: nn.Conv2d(8, 12, 1, **k),
    "3x3": lambda **k: nn.Conv2d(8, 12, 3, padding=1, **k),
    "all": lambda **k: nn.Conv2d(8, 12, (3, 2), stride=(2, 1), padding=(2, 0), dilation=(1, 3), **k),
    "same": lambda **k: nn.Conv2d(8, 12, (4, 3), padding="same", dilation=(1, 2), **k),
    "valid": lambda **k: nn.Conv2d(8, 12, 3, padding="valid", **k),
    "patches": lambda **k: nn.Conv2d(8, 12, 4, stride=4, **k),
    "1d": lambda **k: nn.Conv1d(8, 12, 5, stride=2, padding=2, bias=False, **k),
    "3d": lambda **k: nn.Conv3d(8, 12, (2, 3, 1), padding=(1, 1, 0), **k),
}
SIZES = {1: (17,), 2: (9, 11), 3: (4, 5, 6)}


def pruned(kind, pattern="4x1", dtype=torch.float32):
    torch.manual_seed(0)
    conv = CONVS[kind](dtype=dtype).eval()
    matrix = as_matrix(conv.weight.detach())
    if pattern == "2:4":
        kept = (torch.arange(matrix.shape[1]) % 4 < 2).expand_as(matrix)
    else:
        kept = (torch.rand(3, matrix.shape[1]) < 0.3).repeat_interleave(4, 0)
    shape = len(matrix), *conv.kernel_size, conv.in_channels
    conv.weight.data *= kept.view(shape).movedim(-1, 1)
    return conv


def packed(conv, pattern="4x1"):
    return Conv24.from_conv(conv) if pattern == "2:4" else ConvBlocks.from_conv(conv, (4, 1))


def inputs(conv, batch=(3,), **kwargs):
    return torch.randn(*batch, 8, *SIZES[conv.weight.dim() - 2], **kwargs)


@pytest.mark.parametrize("piece", [1, 200, 1 << 17])
@pytest.mark.parametrize("pattern", ["4x1", "2:4"])
@pytest.mark.parametrize("kind", CONVS)
def test_the_same_outputs_and_back(kind, pattern, piece, monkeypatch):
    monkeypatch.setattr(windows, "_PIECE", piece)
    conv = pruned(kind, pattern)
    layer = packed(conv, pattern)
    for batch in ((3,), (), (0,)):
        x = inputs(conv, batch)
        want = conv(x)
        got = layer(x)
        torch.testing.assert_close(got, want)
        assert got.stride() == want.stride() or not got.numel()
    back = layer.to_conv()
    assert str(back) == str(conv)
    assert torch.equal(back.weight, conv.weight)
    assert not any(p.requires_grad for p in layer.parameters())
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
        assert getattr(layer, name) == getattr(conv, name)


def test_pieces_are_what_they_are_called(monkeypatch):
    monkeypatch.setattr(windows, "_PIECE", 2 * 9 * 8 * 11)  # two rows of an image
    geometry = windows.geometry_of(pruned("3x3"))
    found = geometry.windows(torch.randn(2, 8, 9, 11))
    assert [len(part) for part in windows.pieces(found, 2)] == [22, 22, 22, 22, 11] * 2
    monkeypatch.setattr(windows, "_PIECE", 2 * 9 * 8 * 11 * 9)  # two images
    found = geometry.windows(torch.randn(3, 8, 9, 11))
    assert [len(part) for part in windows.pieces(found, 2)] == [198, 99]
    last = torch.randn(2, 9, 11, 8).movedim(-1, 1)
    (whole,) = windows.pieces(windows.geometry_of(pruned("1x1")).windows(last), 2)
    assert whole.data_ptr() == last.data_ptr(), "nothing is laid out anew"


@pytest.mark.parametrize("of", ["input", "weight", "both"])
@pytest.mark.parametrize("kind", ["3x3", "1x1", "3d"])
def test_outputs_lie_in_memory_as_those_of_a_dense_convolution(kind, of):
    conv = pruned(kind)
    x = inputs(conv)
    last = torch.channels_last_3d if kind == "3d" else torch.channels_last
    if of != "weight":
        x = x.contiguous(memory_format=last)
    if of != "input":
        conv = conv.to(memory_format=last)
    want, layer = conv(x), packed(conv)
    torch.testing.assert_close(layer(x), want)
    assert layer(x).stride() == want.stride()
    assert layer.weight.stride() == layer.to_conv().weight.stride() == conv.weight.stride()
    assert is_channels_last(x) == (of != "weight")


def test_hooks_run_once_without_a_batch_too():
    conv = pruned("3x3")
    layer, calls = packed(conv), []
    layer.register_forward_hook(lambda *args: calls.append(1))
    layer(inputs(conv, ()))
    assert calls == [1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    conv = pruned("3x3", dtype=dtype)
    x = inputs(conv, dtype=dtype)
    exact = copy.deepcopy(conv).double()(x.double())
    error = (packed(conv)(x).double() - exact).abs().max()
    assert error <= 2 * (conv(x).double() - exact).abs().max() + 1e-15


def test_gradients_reach_inputs_and_values():
    conv = pruned("all").double()
    layer = packed(conv)
    layer.values.requires_grad_()
    x = inputs(conv, dtype=torch.float64)
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    conv(one).square().sum().backward()
    layer(two).square().sum().backward()
    torch.testing.assert_close(two.grad, one.grad)
    weight = layer.weight
    assert torch.equal(weight, conv.weight)
    (of_values,) = torch.autograd.grad(weight.sum(), layer.values)
    assert of_values.shape == layer.values.shape
    assert of_values.any()


@pytest.mark.parametrize("pattern", ["4x1", "2:4"])
def test_saved_copied_and_compiled(pattern):
    conv = pruned("3x3", pattern)
    layer, x = packed(conv, pattern), inputs(conv)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(layer), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(x), layer(x))
        assert str(other) == str(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=False)
    torch.testing.assert_close(compiled(x), layer(x))
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), layer(x))


def test_the_weight_is_seen_but_not_written_to():
    conv = pruned("3x3")
    layer = packed(conv)
    assert layer.weight.shape == conv.weight.shape
    assert layer.weight.dtype == torch.float32
    assert torch.equal(layer.weight, conv.weight)
    with pytest.raises(RuntimeError, match="call trisparse.decompress"):
        layer.weight.zero_()


@pytest.mark.parametrize(
    ("conv", "shape", "message"),
    [
        (nn.Conv2d(8, 8, 3, groups=2), None, "conv: want groups=1 and padding_mode='zeros', got 2 and 'zeros'"),
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), None, "got 1 and 'reflect'"),
        (nn.Conv2d(8, 8, 3), (1, 4, 9, 9), r"x: want \[batch, 8, size, size\], batch or not, got \[1, 4, 9, 9\]"),
        (nn.Conv2d(8, 8, 3), (9, 8), r"batch or not, got \[9, 8\]"),
    ],
)
def test_what_does_not_fit(conv, shape, message):
    with pytest.raises(ValueError, match=message):
        ConvBlocks.from_conv(conv, (4, 1))(torch.randn(*shape))


def test_an_input_smaller_than_the_kernel_is_refused():
    with pytest.raises(RuntimeError):
        packed(pruned("valid"))(torch.randn(1, 8, 2, 2))


@pytest.mark.parametrize("kind", CONVS)
@pytest.mark.parametrize("positions", [1, 60])
def test_sizes_for_positions(kind, positions):
    conv = pruned(kind)
    sizes = windows.geometry_of(conv).sizes_for(positions)
    made = conv(torch.randn(1, 8, *sizes))[0, 0].numel()
    assert windows.geometry_of(conv).positions(sizes) == made
    assert made == {1: 1, 60: {1: 60, 2: 49, 3: 27}[len(sizes)]}[positions] or (positions == 1 and made <= 3)


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("size", [1, 3])
def test_one_channel_lies_as_torch_takes_it_to(size, is_last):
    conv = nn.Conv2d(1, 8, size)
    conv = conv.to(memory_format=torch.channels_last) if is_last else conv
    x = torch.randn(2, 1, 5, 4)
    assert packed(conv)(x).stride() == conv(x).stride()

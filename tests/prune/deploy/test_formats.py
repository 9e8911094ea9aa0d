"""Which formats a weight fits, found in the weight itself, and there and back for each kind of layer."""

import pytest
import torch
from torch import nn

from trisparse.prune.deploy.choose_format import Chooser
from trisparse.prune.deploy.formats import Format, formats_of, pack_layer, unpack_layer
from trisparse.sparse_ops import Linear24, LinearBlocks, nm_mask


def pruned(n, m, density, rows=128, cols=256, dtype=torch.float32):
    kept = (torch.rand(rows // n, cols // m) < density).repeat_interleave(n, 0).repeat_interleave(m, 1)
    return torch.randn(rows, cols, dtype=dtype) * kept


def names(weight):
    return [str(form) for form in formats_of(weight)]


def test_dense_and_nearly_dense_weights_stay():
    assert names(torch.randn(64, 64)) == []
    assert names(pruned(1, 1, 0.9)) == []
    assert names(torch.empty(0, 64)) == []


def test_the_smallest_is_the_pattern_it_was_pruned_with():
    for n, m in [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (32, 1), (16, 16), (32, 32), (64, 64)]:
        assert names(pruned(n, m, 0.2, 512, 512))[0] == f"{n}x{m}"
    halves = torch.randn(128, 256)
    assert names(halves * nm_mask(halves, 2, 4)) == ["2:4", "1x1"]
    assert "2:4" in names(pruned(4, 1, 0.05, 64, 64) * nm_mask(torch.randn(64, 64), 2, 4))


def test_rows_are_grouped_anew_only_below_the_height_of_the_pattern():
    assert [name for name in names(pruned(8, 1, 0.1)) if "of" in name] == ["16x1 of 8x1", "32x1 of 8x1"]
    assert "4x1 of 1x1" in names(pruned(1, 1, 0.1))


def test_bytes_are_those_of_the_packed_layer():
    for n, m, rows, cols in [(4, 1, 128, 128), (16, 1, 72, 100), (32, 32, 96, 100), (16, 16, 20, 24), (1, 1, 64, 64)]:
        weight = pruned(n, m, 0.2, -(-rows // n) * n, -(-cols // m) * m)[:rows, :cols]
        layer = nn.Linear(cols, rows, bias=False)
        layer.weight.data = weight
        forms = formats_of(weight)
        assert [form.nbytes for form in forms] == sorted(form.nbytes for form in forms)
        for form in forms:
            packed = pack_layer(layer, form)
            real = sum(tensor.nbytes for tensor in (*packed.parameters(), *packed.buffers()))
            assert real <= form.nbytes if form.is_regrouped else real == form.nbytes, (form, real)
            if form.block == (n, m) and rows % n == cols % m == 0:
                assert form.stored == pytest.approx(float((weight != 0).float().mean()), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_small_layers_get_the_smallest_format_too(dtype):
    chooser = Chooser("memory", [1], False, None)
    for trial in range(24):
        torch.manual_seed(trial)
        rows, cols = (int(torch.randint(1, 13, ())) * 8 for _ in range(2))
        n, m = [(1, 1), (4, 1), (4, 4), (16, 1)][trial % 4]
        weight = pruned(n, m, float(torch.rand(())), -(-rows // n) * n, -(-cols // m) * m, dtype)[:rows, :cols]
        layer = nn.Linear(cols, rows, dtype=dtype)
        layer.weight.data = weight * nm_mask(weight, 2, 4) if trial % 3 == 0 else weight
        sizes = [layer.weight.nbytes]
        for form in formats_of(layer.weight.detach()):
            packed = pack_layer(layer, form)
            sizes.append(sum(t.nbytes for t in (*packed.parameters(), *packed.buffers())) - packed.bias.nbytes)
        row, _ = chooser.choose("x", layer, "")
        assert row.bytes_after <= 1.05 * min(sizes)


@pytest.mark.parametrize("form", [Format("2:4"), Format("vectors", (8, 1), 2), Format("blocks", (16, 32), 16)], ids=str)
def test_there_and_back(form):
    layer = nn.Linear(64, 48).eval()
    layer.weight.data *= nm_mask(layer.weight, 2, 4)
    packed = pack_layer(layer, form)
    assert isinstance(packed, Linear24 if form.kind == "2:4" else LinearBlocks)
    assert not packed.training
    back = unpack_layer(packed)
    assert type(back) is nn.Linear
    assert torch.equal(back.weight, layer.weight)
    assert torch.equal(back.bias, layer.bias)


def test_removed_channels_come_back_as_zeros_at_the_end():
    layer = nn.Linear(8, 6)
    layer.full_shape = 10, 8
    back = unpack_layer(pack_layer(layer, Format("vectors", (4, 1), 4)))
    assert back.weight.shape == (10, 8)
    assert torch.equal(back.weight[:6], layer.weight)
    assert not back.weight[6:].any()
    assert not back.bias[6:].any()


def test_transformers_conv1d():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D(32, 64)
    conv1d.weight.data *= torch.rand(64, 32) < 0.2
    conv1d.bias.data.normal_()
    x = torch.randn(3, 64)
    packed = pack_layer(conv1d, Format("vectors", (4, 1), 4))
    torch.testing.assert_close(packed(x), conv1d(x))
    back = unpack_layer(packed)
    assert type(back) is type(conv1d)
    assert torch.equal(back.weight, conv1d.weight)
    assert torch.equal(back(x), conv1d(x))

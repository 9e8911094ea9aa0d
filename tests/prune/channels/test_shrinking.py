"""Convolutions, batch norms and the like without their zero channels, and with all of them again."""

import copy

import pytest
import torch
from torch import nn

from trisparse import compact, decompress
from trisparse.prune.channels.shrinking import padded


class Block(nn.Module):
    """A basic block of a ResNet."""

    def __init__(self, width=16):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x
        return self.relu(y)


def set_up(*layers, zero=(0,), value=-2.0):
    """A network with half of some layers' filters zero; `value` is what batch norms make of zero."""
    model = nn.Sequential(*layers).eval()
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.track_running_stats:
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
            if layer.affine:
                nn.init.uniform_(layer.weight, 0.5, 2)
                scale = layer.weight.data / (layer.running_var + layer.eps).sqrt()
                layer.bias.data = value + layer.running_mean * scale
    for name in zero:
        model.get_submodule(str(name)).weight.data[::2] = 0
    return model


PICTURES = torch.randn(2, 3, 8, 8)
CONV, BN = nn.Conv2d, nn.BatchNorm2d
# layers, whose filters are zero, what is read of those; units, how many go, why others stay
NETWORKS = {
    "batch norm": ((CONV(3, 16, 3), BN(16), nn.ReLU(), CONV(16, 8, 3)), (0,), 0.5, 8, ""),
    "scales": ((CONV(3, 16, 3), BN(16), nn.ReLU(), CONV(16, 8, 3)), (1,), 0.5, 8, ""),
    "padded zeros": ((CONV(3, 16, 3), BN(16), nn.ReLU(), CONV(16, 8, 3, padding=1)), (0,), -2.0, 8, ""),
    "padded constants": ((CONV(3, 16, 3), BN(16), nn.ReLU(), CONV(16, 8, 3, padding=1)), (0,), 2.0, 0, "8 with zero rows stay: what 3 reads of them is not always the same"),
    "padded by itself": ((CONV(3, 16, 3), BN(16), nn.ReLU(), CONV(16, 8, 3, padding=1, padding_mode="reflect")), (0,), 0.5, 8, ""),
    "no bias": ((CONV(3, 16, 3), BN(16), nn.ReLU(), CONV(16, 8, 3, bias=False)), (0,), 2.0, 0, "8 stay: 3 has no bias to take what they always give"),
    "in place": ((CONV(3, 16, 3), BN(16), nn.ReLU(inplace=True), nn.MaxPool2d(2), CONV(16, 8, 1)), (0,), 0.5, 8, ""),
    "not affine": ((CONV(3, 16, 3), BN(16, affine=False), nn.Hardswish(), CONV(16, 8, 3)), (0,), 0.0, 8, ""),
    "depthwise": ((CONV(3, 16, 1), BN(16), nn.ReLU6(), CONV(16, 16, 3, padding=1, groups=16), BN(16), CONV(16, 8, 1)), (0,), -2.0, 8, ""),
    "depthwise alone": ((CONV(3, 16, 1), BN(16), nn.ReLU6(), CONV(16, 16, 3, padding=1, groups=16), CONV(16, 8, 1)), (3,), 0.5, 8, ""),
    "prelu": ((CONV(3, 16, 1), nn.PReLU(16), CONV(16, 8, 1)), (0,), 0.5, 8, ""),
    "prelu of one": ((nn.PReLU(), CONV(3, 16, 1), nn.PReLU(), CONV(16, 8, 1)), (1,), 0.5, 8, ""),
    "average": ((CONV(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8)), (0,), 0.5, 8, ""),
    "average over padding": ((CONV(3, 16, 3), nn.AvgPool2d(3, padding=1), CONV(16, 8, 1)), (0,), 0.5, 0, "8 with zero rows stay: what 2 reads of them is not always the same"),
    "zero padding": ((CONV(3, 16, 3), nn.ZeroPad2d(1), CONV(16, 8, 3)), (0,), 0.5, 0, "8 with zero rows stay: what 2 reads of them is not always the same"),
    "upsampled": ((CONV(3, 16, 3), nn.Upsample(scale_factor=2), CONV(16, 8, 3)), (0,), 0.5, 8, ""),
    "block": ((CONV(3, 16, 1), Block()), ("1.conv1",), -2.0, 8, ""),
}  # fmt: skip


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", NETWORKS)
def test_filters_go_with_all_that_is_between(name, memory_format):
    layers, zero, value, gone, reason = NETWORKS[name]
    model = set_up(*copy.deepcopy(layers), zero=zero, value=value).to(memory_format=memory_format)
    full = copy.deepcopy(model)
    want = model(PICTURES)
    report = compact(model, (PICTURES,), multiple=1)
    assert [(c.units, c.removable, c.kept, c.reason) for c in report.chains] == [(16, gone, 16 - gone, reason)]
    torch.testing.assert_close(model(PICTURES), want)
    other = torch.randn(2, 3, 8, 8) * 2
    torch.testing.assert_close(model(other), full(other))
    small = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert (report.parameters[1] < report.parameters[0]) == (gone > 0)
    decompress(model)
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in full.state_dict().items()
    }
    torch.testing.assert_close(model(other), full(other))
    assert str(model) == str(full)  # its sizes are what they say
    assert all((value > 0).all() for key, value in model.state_dict().items() if key.endswith("running_var"))
    compact(model, (PICTURES,), multiple=1)
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == small


READERS = {
    "group norm": ((CONV(3, 16, 3), nn.GroupNorm(4, 16), CONV(16, 8, 3)), "0", "1 (GroupNorm) reads them"),
    "instance norm": ((CONV(3, 16, 3), nn.InstanceNorm2d(16), CONV(16, 8, 3)), "0", "1 (InstanceNorm2d) reads them"),
    "batch norm of the batch": ((CONV(3, 16, 3), BN(16, track_running_stats=False), CONV(16, 8, 3)), "0", "1 (BatchNorm2d) takes means over the batch and reads them"),
    "transposed": ((CONV(3, 16, 3), nn.ConvTranspose2d(16, 8, 3)), "0", "1 (ConvTranspose2d) reads them"),
    "groups": ((CONV(3, 16, 3), CONV(16, 8, 3, groups=4)), "0", "1 (Conv2d) reads them in groups"),
    "groups of its own": ((CONV(3, 16, 1), CONV(16, 8, 1, groups=4), CONV(8, 8, 1)), "1", "1 (Conv2d) makes them in groups"),
    "single": ((CONV(3, 1, 1), CONV(1, 8, 1)), "0", "it is the only one"),
    "block": ((CONV(3, 16, 1), Block()), "0", "a residual sum in 1 (Block) reads them"),
    "end of a block": ((CONV(3, 16, 1), Block(), CONV(16, 8, 1)), "1.conv2", "a residual sum in 1 (Block) reads them"),
    "shuffled": ((CONV(3, 16, 1), nn.PixelShuffle(2), CONV(4, 8, 1)), "0", "1 (PixelShuffle) splits them"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:`training_mode` is set")
@pytest.mark.parametrize("name", READERS)
def test_the_reason_names_what_reads_filters(name):
    layers, zero, reason = READERS[name]
    model = set_up(*copy.deepcopy(layers), zero=(zero,))
    report = compact(model, (PICTURES,))
    assert report.reasons == {zero: reason}
    assert report.parameters[0] == report.parameters[1]


def test_a_network_that_fails_has_its_batch_norms_back():
    class Fixed(nn.Sequential):
        def forward(self, x):
            return super().forward(x) * self[1].num_features

    model = Fixed(*set_up(CONV(3, 16, 3), BN(16), nn.ReLU(), CONV(16, 8, 3))).eval()
    before = [{**vars(m), "_parameters": dict(m._parameters), "_buffers": dict(m._buffers)} for m in model.modules()]
    (row,) = compact(model, (PICTURES,)).chains
    assert row.reason.startswith("stays: the model fails without its zero channels (its outputs differ")
    assert [vars(m) for m in model.modules()] == before


def test_a_depthwise_convolution_of_one_channel_gets_its_groups_back():
    model = set_up(CONV(3, 16, 1), nn.ReLU(), CONV(16, 16, 3, groups=16), CONV(16, 8, 1))
    model[0].weight.data[1:] = 0
    model[2].bias.data[1:] = model[2].bias.data[1:].abs()
    full, want = copy.deepcopy(model), model(PICTURES)
    compact(model, (PICTURES,), multiple=1)
    assert [layer.weight.shape[0] for layer in (model[0], model[2])] == [1, 1]
    torch.testing.assert_close(model(PICTURES), want)
    decompress(model)
    assert str(model) == str(full)
    torch.testing.assert_close(model(PICTURES), want)


def test_padded():
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert padded(rows, 0, 4, 2).tolist() == [[1, 2], [0, 0], [3, 4], [0, 0]]
    assert padded(rows, 1, 3, 1, 9.0).tolist() == [[1, 2, 9], [3, 4, 9]]
    assert padded(rows, 0, 2, 1).tolist() == rows.tolist()

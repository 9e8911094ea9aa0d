"""Convolutions are packed, described, saved, loaded and unpacked as linear layers are."""

import copy
import json

import pytest
import torch
from torch import nn

from trisparse import (
    PruningError,
    compress,
    compress_like,
    decompress,
    describe,
    from_pretrained,
    prune_once,
    report,
    save_pretrained,
)
from trisparse.prune.deploy import choose_format
from trisparse.prune.deploy.export import export
from trisparse.prune.deploy.inspection import packed_rows
from trisparse.sparse_ops import Conv24, ConvBlocks
from trisparse.sparse_ops.convolutions.packed_convs import is_channels_last

X = torch.randn(2, 3, 17, 19)


def net():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 64, 3, padding="same", dilation=2), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, groups=64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 8),
    ).eval()  # fmt: skip


def pruned(pattern, seed=0, channels_last=False):
    torch.manual_seed(seed)
    model = net()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    sparsity = 0.5 if pattern == "2:4" else 0.8
    prune_once(
        model, pattern=pattern, target_sparsity=sparsity, pruning_scope="local", pruning_op_types=["Conv"],
        excluded_op_names=["^7$"],
    )  # fmt: skip
    return model


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("pattern", "kinds"),
    [
        ("4x1", [ConvBlocks, ConvBlocks, ConvBlocks]),
        ("2:4", [nn.Conv2d, Conv24, Conv24]),  # three channels are no groups of four
        ("1xchannel", [ConvBlocks, nn.Conv2d, nn.Conv2d]),  # zeros that a padded convolution reads are not removed
    ],
)
def test_compressed_described_loaded_and_unpacked(pattern, kinds, channels_last):
    model = pruned(pattern, channels_last=channels_last)
    want = model(X)
    small, told = compress(copy.deepcopy(model), prefer="memory", measure=False, example=(X,))
    assert [type(small[i]) for i in (0, 3, 5)] == kinds
    assert told.verified
    torch.testing.assert_close(small(X), want)
    assert told.bytes_after < told.bytes_before
    assert [row.name for row in told.layers] == ["0", "3", "5", "10"]
    assert not any(row.expected for row in told.layers)
    fresh = compress_like(net(), json.loads(json.dumps(describe(small))))
    fresh.load_state_dict(small.state_dict())
    assert str(fresh) == str(small)
    torch.testing.assert_close(fresh(X), want)
    assert describe(fresh) == describe(small)
    whole = decompress(fresh)
    assert str(whole) == str(net())
    torch.testing.assert_close(whole(X), want)
    assert describe(whole)["layers"] == {}
    if pattern != "1xchannel":
        assert all(torch.equal(whole.state_dict()[key], value) for key, value in model.state_dict().items())


def test_what_is_left_of_filters_is_packed_too():
    model = pruned("4x1")
    model[3].weight.data[:32], model[3].bias.data[:32] = 0, 0
    want = model(X)
    small, _ = compress(copy.deepcopy(model), prefer="memory", measure=False, example=(X,))
    assert isinstance(small[3], ConvBlocks)
    assert (small[3].out_channels, small[5].in_channels) == (32, 32)
    fresh = compress_like(net(), describe(small))
    fresh.load_state_dict(small.state_dict())
    for same in (small, fresh, decompress(copy.deepcopy(small))):
        torch.testing.assert_close(same(X), want)
    whole = decompress(fresh)
    assert str(whole) == str(net())
    assert {k: v.shape for k, v in whole.state_dict().items()} == {k: v.shape for k, v in net().state_dict().items()}


def test_a_depthwise_convolution_stays_and_the_report_says_so():
    model = pruned("4x1")
    model[7].weight.data[:20] = 0
    _, told = compress(model, prefer="memory", measure=False, remove_channels=False)
    assert type(model[7]) is nn.Conv2d
    assert "these weights with zeros have no packed format: 1 of Conv2d (31% of them zero, " in told.note


@pytest.fixture
def seen(monkeypatch):
    """What layers were timed on; packed ones are twice as fast."""
    found = []

    def time_pair(dense, packed, x):
        torch.testing.assert_close(packed(x), dense(x))
        found.append((dense, x))
        return {"dense_ms": 2.0, "packed_ms": 1.0, "equal": True}

    monkeypatch.setattr(choose_format, "time_pair", time_pair)
    monkeypatch.setattr(choose_format, "runs_packed", lambda dtype: True)
    monkeypatch.setattr(choose_format, "_HOPELESS", 0)
    return found


@pytest.mark.parametrize("channels_last", [False, True])
def test_speed_is_measured_on_pictures_that_lie_as_the_weight_does(channels_last, seen, tmp_path):
    _, told = compress(pruned("4x1", channels_last=channels_last), tokens=(1, 100), cache=tmp_path)
    assert {dense(x)[0, 0].numel() for dense, x in seen if x.dim() > 2} == {1, 100}
    assert all(is_channels_last(x) == is_channels_last(dense.weight) for dense, x in seen if x[0, 0].numel() > 1)
    assert told.layers[1].format == "4x1"
    assert told.layers[1].measured == {1: 2.0, 100: 2.0}


def test_speed_is_measured_on_what_the_example_brings(seen, tmp_path):
    x = X.contiguous(memory_format=torch.channels_last)
    _, told = compress(pruned("4x1"), tokens=(1, 100), example=(x,), cache=tmp_path)
    pictures = [x for _, x in seen if x.dim() > 2]
    assert {tuple(x.shape) for x in pictures} == {(2, 3, 17, 19), (2, 16, 9, 10), (2, 64, 9, 10)}
    assert all(map(is_channels_last, pictures))
    assert [set(row.measured) for row in told.layers[:3]] == [{2 * 9 * 10}] * 3


def test_without_a_clock_a_convolution_is_not_taken_to_be_faster(monkeypatch):
    monkeypatch.setattr(choose_format, "runs_packed", lambda dtype: True)
    _, told = compress(pruned("4x1"), measure=False)
    assert {row.reason for row in told.layers[:3]} == {"dense: convolutions are packed where that is timed"}


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A compressed ResNet, what it gives, and where it is saved."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1], layer_type="basic")
    model = transformers.ResNetForImageClassification(config).eval()
    prune_once(model, pattern="4x1", target_sparsity=0.8, pruning_op_types=["Conv"])
    before, picture = report(model), torch.randn(1, 3, 32, 32)
    want = model(picture).logits
    compress(model, prefer="memory", measure=False, example={"pixel_values": picture})
    assert sum(isinstance(m, ConvBlocks) for m in model.modules()) >= 4
    folder = tmp_path_factory.mktemp("resnet") / "small"
    save_pretrained(model, folder)
    return model, picture, want, before, folder


def test_a_transformers_model_is_saved_and_loaded(resnet, tmp_path):
    model, picture, want, before, folder = resnet
    again = from_pretrained(folder)
    assert str(again) == str(model)
    torch.testing.assert_close(again(picture).logits, want)
    for after in (report(again), report(model)):
        assert [(row.zeros, row.weights) for row in after.layers] == [(row.zeros, row.weights) for row in before.layers]
    export(again, tmp_path / "dense", "dense")
    torch.testing.assert_close(from_pretrained(tmp_path / "dense")(picture).logits, want)
    rows = {row.name: row for row in packed_rows(folder)}
    name, layer = next((n, m) for n, m in model.named_modules() if isinstance(m, ConvBlocks))
    assert rows[name].shape == [layer.out_features, layer.in_features]
    assert not rows[name].speed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": [5, 5]}, r"kernel: want divisors|kernel: want a divisor"),
        ({"kernel": [9]}, r"kernel: want \[3, 3\], as the model has it, got \[9\]"),
        ({"kernel": []}, r"kernel: got \[\]"),
        ({"kernel": [0, 9]}, r"kernel: got \[0, 9\]"),
        ({"channels_last": 1}, "channels_last: got 1"),
        ({"kernel": None}, "kernel: got None"),
    ],
)
def test_a_damaged_description(change, message):
    small, _ = compress(pruned("4x1"), prefer="memory", measure=False)
    description = describe(small)
    description["layers"]["3"] |= change
    fresh = net()
    with pytest.raises(PruningError, match=message):
        compress_like(fresh, description)
    assert str(fresh) == str(net())


def test_a_linear_layer_is_no_convolution():
    description = describe(compress(pruned("4x1"), prefer="memory", measure=False)[0])
    description["layers"]["10"] = description["layers"].pop("3")
    with pytest.raises(PruningError, match="found Linear, not a dense convolution without groups"):
        compress_like(net(), description)


@pytest.mark.parametrize("kind", ["ResNet", "ViT"])
def test_a_model_of_pictures_has_an_example_itself(kind):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "ResNet":
        config = transformers.ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[16], depths=[1])
    else:
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        config = transformers.ViTConfig(**sizes, image_size=16, patch_size=4)
    model = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    prune_once(model, pattern="4x1", target_sparsity=0.7)
    _, told = compress(model, prefer="memory", measure=False)
    assert told.verified
    assert any(isinstance(layer, ConvBlocks) for layer in model.modules())
    assert "example" not in told.note

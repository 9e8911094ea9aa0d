"""Convolutions, batch norms and PReLUs without their zero channels are saved, described and loaded again."""

import copy
import json

import pytest
import torch
from torch import nn

from trisparse import (
    PruningError,
    compact,
    compress,
    compress_like,
    decompress,
    describe,
    from_pretrained,
    save_pretrained,
)
from trisparse.prune.deploy.channel_spec import trouble_of_channels
from trisparse.prune.deploy.export import export
from trisparse.prune.deploy.inspection import packed_rows

PICTURES = torch.randn(1, 3, 32, 32)


class Net(nn.Sequential):
    """All that loses channels: plain and depthwise convolutions, batch norms with and without weights, PReLU."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16),
            nn.BatchNorm2d(16, affine=False), nn.PReLU(16), nn.Conv2d(16, 8, 1), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(8, 4),
        )  # fmt: skip


def small_net():
    """Half of the first convolution's filters, and all that follows them, are gone."""
    net = Net().eval()
    net[0].weight.data[::2] = 0
    net[1].running_mean.uniform_(0, 1)
    net[1].bias.data = net[1].running_mean - 1
    net[4].running_var.uniform_(0.5, 2)
    want = net(PICTURES)
    compact(net, (PICTURES,), multiple=1)
    assert [len(net[i].weight) for i in (0, 1, 3, 5)] == [8, 8, 8, 8]
    torch.testing.assert_close(net(PICTURES), want)
    return net


def small_resnet():
    """A ResNet whose blocks lost filters, and what it gives."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic")
    model = transformers.ResNetForImageClassification(config).eval()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(0, 1)  # what it makes of zero, ReLU makes zero
        if name.endswith("layer.0.convolution"):
            layer.weight.data[::2] = 0
    want = model(PICTURES).logits
    compress(model, example={"pixel_values": PICTURES})
    torch.testing.assert_close(model(PICTURES).logits, want)
    return model, want


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_state_dict_loads_into_a_fresh_module(dtype):
    net = small_net()
    description = json.loads(json.dumps(describe(net)))
    assert {spec["format"] for spec in description["layers"].values()} == {"channels"}
    fresh = compress_like(Net().to(dtype).eval(), description)
    assert not fresh[0].weight.any()
    fresh.load_state_dict(net.state_dict())
    assert str(fresh) == str(net)
    torch.testing.assert_close(fresh(PICTURES.to(dtype)), net(PICTURES).to(dtype))
    assert describe(fresh) == describe(net)
    torch.testing.assert_close(decompress(fresh)(PICTURES.to(dtype)), net(PICTURES).to(dtype))
    assert str(fresh) == str(Net())
    assert describe(fresh)["layers"] == {}


@pytest.mark.parametrize(
    ("layer", "spec", "message"),
    [
        (
            "0",
            {"full_channels": [32, 3]},
            r"0: tensors: want {'weight': \[16, 3, 3, 3\]} with all channels, as the mod",
        ),
        ("0", {"tensors": {"weight": [8, 3, 5, 5]}}, "0: tensors: want .*, as the model has them, got .*5, 5"),
        ("2", {}, "2: want the model as it was before compress, found ReLU, not a dense convolution, batch norm or P"),
        ("9", {}, "9: want the model as it was before compress, found Linear, not a dense convolution, batch norm"),
    ],
)
def test_what_does_not_fit_changes_nothing(layer, spec, message):
    description = describe(small_net())
    description["layers"][layer] = {**description["layers"]["0"], **spec}
    fresh = Net()
    with pytest.raises(PruningError, match=message):
        compress_like(fresh, description)
    assert str(fresh) == str(Net())
    assert [p.shape for p in fresh.parameters()] == [p.shape for p in Net().parameters()]


def test_a_transformers_model_is_saved_without_its_filters(tmp_path):
    model, want = small_resnet()
    save_pretrained(model, tmp_path / "small")
    again = from_pretrained(tmp_path / "small")
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert str(again) == str(model)
    torch.testing.assert_close(again(PICTURES).logits, want)
    save_pretrained(again, tmp_path / "twice")
    torch.testing.assert_close(from_pretrained(tmp_path / "twice")(PICTURES).logits, want)
    export(again, tmp_path / "dense", "dense")
    save_pretrained(decompress(again), tmp_path / "again")
    for folder in ("dense", "again"):
        torch.testing.assert_close(from_pretrained(tmp_path / folder)(PICTURES).logits, want)
    sizes = {p.name: sum(f.stat().st_size for f in p.glob("*.safetensors")) for p in tmp_path.iterdir()}
    assert sizes["small"] < 0.7 * sizes["dense"]
    card = (tmp_path / "small" / "README.md").read_text()
    tensors = sum(v.nbytes for v in decompress(model).state_dict().values())
    assert f"| bytes, dense | {tensors:,} |" in card


def test_inspect_shows_convolutions_and_no_batch_norms(tmp_path):
    model, _ = small_resnet()
    save_pretrained(model, tmp_path / "small")
    rows = {row.name: row for row in packed_rows(tmp_path / "small")}
    name = next(name for name in rows if name.endswith("encoder.stages.1.layers.0.layer.0.convolution"))
    row = rows[name]
    assert (row.shape, row.note) == ([16, 16, 3, 3], "channels removed from 32x16x3x3")
    assert (row.nbytes, row.dense_bytes) == (16 * 16 * 9 * 4, 32 * 16 * 9 * 4)
    assert all("normalization" not in name for name in rows)


def test_a_base_model_alone_is_loaded_with_its_filters_gone(tmp_path):
    model, _ = small_resnet()
    save_pretrained(model.resnet, tmp_path / "base")
    want = model.resnet(PICTURES).pooler_output
    torch.testing.assert_close(from_pretrained(tmp_path / "base")(PICTURES).pooler_output, want)


def test_files_and_config_have_to_agree(tmp_path):
    model, want = small_resnet()
    save_pretrained(copy.deepcopy(model), tmp_path / "small")
    path = tmp_path / "small" / "config.json"
    config = json.loads(path.read_text())
    found = config["quantization_config"]
    del found["files"]  # as of a config object that several models share
    save_pretrained(decompress(model), tmp_path / "dense")
    (tmp_path / "dense" / "config.json").write_text(json.dumps(config))
    dense = from_pretrained(tmp_path / "dense")  # whose files have all channels, which is no damage
    torch.testing.assert_close(dense(PICTURES).logits, want)
    assert dense.num_parameters() == model.num_parameters()
    name = "resnet.encoder.stages.1.layers.0.layer.0.convolution"
    found["layers"][name]["tensors"]["weight"] = [24, 16, 3, 3]
    path.write_text(json.dumps(config))
    with pytest.raises(PruningError, match=rf"{name}.weight: want \[24, 16, 3, 3\] .*, got \[16, 16, 3, 3\]"):
        from_pretrained(tmp_path / "small")


GOOD = {
    "format": "channels",
    "tensors": {"weight": [8, 3, 1, 1], "bias": [8]},
    "full_channels": [16, 6],
    "parts": [2, 3],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, ""),
        ({"more": 1}, "want the fields format, full_channels, parts, tensors, got "),
        ({"full_channels": 16}, "full_channels: got 16"),
        ({"full_channels": [16, 6, 1]}, "full_channels: got [16, 6, 1]"),
        ({"full_channels": [16, True]}, "full_channels: got [16, True]"),
        ({"full_channels": [16, 2**31]}, "full_channels: got [16, 2147483648]"),
        ({"parts": [2, 0]}, "parts: got [2, 0]"),
        ({"parts": [3, 3]}, "tensors: weight: want at most [16, 6], in parts of [3, 3], got [8, 3, 1, 1]"),
        ({"tensors": []}, "tensors: want weight, bias, running_mean, running_var, or some of them, got []"),
        ({"tensors": {}}, "tensors: want weight, bias, running_mean, running_var, or some of them, got {}"),
        ({"tensors": {"values": [1]}}, "tensors: want weight, bias, running_mean, running_var, or some of them, got {'v"),
        ({"tensors": {"weight": []}}, "tensors: weight: got []"),
        ({"tensors": {"weight": [8, 3, 1, 1, 1, 1]}}, "tensors: weight: got [8, 3, 1, 1, 1, 1]"),
        ({"tensors": {"weight": [8, -3]}}, "tensors: weight: got [8, -3]"),
        ({"tensors": {"weight": [18, 3]}}, "tensors: weight: want at most [16, 6], in parts of [2, 3], got [18, 3]"),
        ({"tensors": {"weight": [8, 3], "bias": [10]}}, "tensors: want as many channels of each, got {'weight': [8, 3]"),
    ],
)  # fmt: skip
def test_damage_is_named(change, message):
    found = trouble_of_channels({**GOOD, **change})
    assert found.startswith(message)
    assert bool(found) == bool(message)

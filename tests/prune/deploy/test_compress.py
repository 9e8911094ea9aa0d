"""compress and decompress: formats by what weights show, outputs that stay, what is refused."""

import copy

import pytest
import torch
from torch import nn

from trisparse import PruningError, compact, compress, decompress, prune_once
from trisparse.prune.deploy import choose_format
from trisparse.prune.deploy.choose_format import Chooser
from trisparse.sparse_ops import Linear24, LinearBlocks


def mixed():
    """Layers pruned in different ways; the second loses channels with the first."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64), nn.LayerNorm(64),
        nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[0].weight[torch.randperm(128)[:80]] = 0
        prune_once(nn.Sequential(model[4], nn.Identity()), pattern="2:4", exclude_head=False)
        model[5].weight *= (torch.rand(16, 64) < 0.1).repeat_interleave(4, 0)
    return model


X = torch.randn(7, 64)


def test_memory_takes_the_smallest_format_and_lets_go_of_the_dense_weight():
    model = mixed()
    want, before, dense = model(X), sum(p.nbytes for p in model.parameters()), model[5].weight
    same, report = compress(model, prefer="memory", tokens=(1, 16))
    assert same is model
    torch.testing.assert_close(model(X), want)
    assert [row.format for row in report.layers] == ["dense", "dense", "2:4", "4x1", "dense"]
    assert model[0].weight.shape == (48, 64)
    assert isinstance(model[4], Linear24)
    assert isinstance(model[5], LinearBlocks)
    assert torch.equal(model[5].weight, dense)
    assert report.bytes_before == before
    assert report.bytes_after == sum(t.nbytes for t in (*model.parameters(), *model.buffers())) < 0.6 * before
    packed = report.layers[3]
    assert packed.bytes_before == 64 * 64 * 4
    assert packed.bytes_after == model[5].values.nbytes + sum(b.nbytes for b in model[5].buffers())
    assert set(packed.measured) == {1, 16}
    assert all(gain > 0 for gain in packed.measured.values())
    assert report.channels.parameters[1] < report.channels.parameters[0]
    text = str(report)
    assert "2 of 5 layers packed: 1 as " in text.splitlines()[0]
    assert "; their speed, dense = 1, T tokens, median: " in text.splitlines()[0]
    assert "x dense, T=16" in text
    assert report.to_dict()["layers"][3]["format"] == "4x1"


@pytest.mark.parametrize(("packed_ms", "formats"), [(1.0, {"2:4", "4x1"}), (1.95, set()), (3.0, set())])
def test_speed_on_a_cpu_packs_what_is_measured_to_be_faster(packed_ms, formats, monkeypatch):
    times = {"dense_ms": 2.0, "packed_ms": packed_ms, "equal": True}
    monkeypatch.setattr(choose_format, "time_pair", lambda dense, packed, x: times)
    monkeypatch.setattr(choose_format, "runs_packed", lambda dtype: True)
    model = mixed()
    want = model(X)
    _, report = compress(model)
    torch.testing.assert_close(model(X), want)
    assert {row.format for row in report.layers} - {"dense"} == formats
    reasons = {"no format is smaller", "the fastest" if formats else "dense is faster here"}
    assert reasons == {row.reason for row in report.layers}
    assert model[0].weight.shape == (48, 64)


def test_speed_on_a_cpu_stays_dense_where_there_are_no_kernels(monkeypatch):
    monkeypatch.setattr(choose_format, "runs_packed", lambda dtype: False)
    _, report = compress(mixed())
    assert {row.reason for row in report.layers} == {
        "no format is smaller", "dense: there is no kernel for it on this CPU",
    }  # fmt: skip


def test_the_summary_says_why_nothing_was_packed(monkeypatch):
    monkeypatch.setattr(choose_format, "runs_packed", lambda dtype: True)
    _, report = compress(mixed(), measure=False)
    assert "; 0 of 5 layers packed; " in report.summary()
    why = "no format is smaller (3), no format promises enough (2)"
    assert "; 80 of 128 channels and heads removed; " in report.summary()
    assert report.summary().endswith(f"; dense: {why}; outputs not compared, give example=…")
    assert str(report).splitlines()[0] == report.summary()
    _, report = compress(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)), prefer="memory")
    assert report.summary().endswith("; dense: no format is smaller (2)")
    _, report = compress(mixed(), prefer="memory")
    assert "; 2 of 5 layers packed: 1 as 2:4, 1 as 4x1; " in report.summary()
    assert "; dense: no format is smaller (3); " in report.summary()


def test_decompress_gives_back_the_full_sizes():
    model = mixed()
    want = model(X)
    shapes = [tuple(p.shape) for p in model.parameters()]
    compress(model, prefer="memory", measure=False)
    decompress(model)
    assert [tuple(p.shape) for p in model.parameters()] == shapes
    assert not any(isinstance(m, (Linear24, LinearBlocks)) for m in model)
    torch.testing.assert_close(model(X), want)
    _, report = compress(model, prefer="memory", measure=False, remove_channels=False)
    assert report.channels is None
    assert model[0].out_features == 128


def test_an_unmeasured_report_has_no_speeds():
    _, report = compress(mixed(), prefer="memory", measure=False)
    assert not any(row.measured for row in report.layers)


def test_what_must_stay_dense():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32))
    for layer in model:
        layer.weight.data.zero_()
    model[1].weight = model[0].weight
    model[2].register_forward_hook(lambda *args: None)
    _, report = compress(model, prefer="memory", remove_channels=False)
    assert [row.reason for row in report.layers] == ["its weight is shared", "its weight is shared", "it has hooks"]
    assert all(type(layer) is nn.Linear for layer in model)


def test_the_report_names_what_was_pruned_and_is_no_linear_layer():
    model = nn.Sequential(nn.ConvTranspose1d(4, 4, 1), nn.LSTM(4, 32), nn.MultiheadAttention(4, 2), nn.Linear(4, 4))
    others = model[0].weight, model[1].weight_ih_l0, model[1].weight_hh_l0, model[2].in_proj_weight
    for weight in others[:3]:
        weight.data[:2] = 0
    _, report = compress(model, measure=False)
    stay = "these weights with zeros have no packed format: 2 of LSTM, 1 of ConvTranspose1d"
    zeros, numbers = 2 * (4 + 4 + 32), 4 * 4 + 128 * 4 + 128 * 32
    assert (
        f"{stay} ({zeros / numbers:.0%} of them zero, {4 * numbers / report.bytes_after:.0%} of all bytes)"
        in report.note
    )
    for weight in others:
        weight.data[:] = 1
    model[1].weight_hh_l0.data[0, 0] = 0  # as training may leave it
    assert "no packed format" not in compress(model, measure=False)[1].note


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prefer": "fast"}, "prefer: want 'speed' or 'memory', got 'fast'"),
        ({"tokens": ()}, "tokens: want at least one"),
        ({"tokens": (0, 4)}, "tokens: .*got \\[0, 4\\]"),
        ({"tokens": 4096}, "tokens: want at least one .*got 4096"),
        ({"tokens": None}, "tokens: want at least one .*got None"),
        ({"tokens": True}, "tokens: want at least one .*got True"),
        ({"tokens": (True,)}, "tokens: want at least one .*got \\[True\\]"),
        ({"tokens": "16"}, "tokens: want at least one .*got '16'"),
        ({"tokens": (1.0,)}, "tokens: want at least one .*got \\[1.0\\]"),
        ({"cache": 3}, "cache: want a folder, got 3"),
    ],
)
def test_misuse(arguments, message):
    model = mixed()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PruningError, match=message):
        compress(model, **arguments)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_a_compressed_model_has_to_be_decompressed_first():
    model = mixed()
    want = model(X)
    compress(model, prefer="memory", measure=False)
    kinds = [type(layer) for layer in model]
    with pytest.raises(PruningError, match=r"^model: is compressed already .4 is packed.; call decompress.model., or"):
        compress(model)
    assert [type(layer) for layer in model] == kinds
    compress(decompress(model))
    assert not any(isinstance(layer, (Linear24, LinearBlocks)) for layer in model)
    torch.testing.assert_close(model(X), want)


def test_a_layer_under_two_names_is_packed_once():
    layer = nn.Linear(64, 64)
    layer.weight.data *= (torch.rand(16, 64) < 0.1).repeat_interleave(4, 0)
    model = nn.Sequential(layer, nn.Tanh(), nn.ModuleDict({"again": layer})["again"], nn.Linear(64, 64))
    want = model(X)
    _, report = compress(model, prefer="memory", measure=False)
    assert model[2] is model[0]
    assert isinstance(model[0], LinearBlocks)
    assert report.bytes_after < report.bytes_before / 1.5
    torch.testing.assert_close(model(X), want)
    decompress(model)
    assert model[2] is model[0]
    assert torch.equal(model[0].weight, layer.weight)


def test_times_go_to_the_folder_that_was_named(tmp_path):
    _, report = compress(mixed(), "memory", [1], cache=str(tmp_path))
    assert report.layers[2].measured
    assert list(tmp_path.glob("*.json"))


def test_models_without_a_linear_layer_to_compress():
    with pytest.raises(PruningError, match="no linear layer"):
        compress(nn.Sequential(nn.ReLU()))
    with pytest.raises(PruningError, match="single layer"):
        compress(nn.Linear(4, 4))


def test_compiled_and_exported():
    model = mixed()
    want = model(X)
    compress(model, prefer="memory", measure=False)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(X), want)
    exported = torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim("tokens")},)).module()
    torch.testing.assert_close(exported(X), want)
    torch.testing.assert_close(exported(X[:3]), want[:3])


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The chooser times layers as it does on a GPU; `times` says what it finds for each format and token count."""
    times = {}

    def measured(self, layer, packed, form, seen):
        return dict(zip(self.tokens, times.get(str(form), (0.5, 0.5)), strict=True))

    monkeypatch.setattr(Chooser, "_measured", measured)
    monkeypatch.setattr(choose_format, "_HOPELESS", 0)
    return times


def fastest(times, layer, measure=True):
    chooser = Chooser("speed", [1, 4096], measure, None)
    weight = layer.weight.detach()
    row = choose_format.CompressedLayer("x", tuple(weight.shape), 0.9, "dense", weight.nbytes, weight.nbytes)
    return chooser._fastest(row, layer, weight, choose_format.formats_of(weight))


def test_the_fastest_format_needs_three_per_cent_and_never_falls_below(as_on_a_gpu):
    layer = nn.Linear(256, 256)
    layer.weight.data *= (torch.rand(8, 8) < 0.1).repeat_interleave(32, 0).repeat_interleave(32, 1)
    for times, want in [
        ({}, "dense"),
        ({"32x1": (1.02, 1.02)}, "dense"),
        ({"32x1": (1.04, 1.04)}, "32x1"),
        ({"32x1": (9.0, 0.96)}, "dense"),
        ({"32x1": (1.2, 0.98)}, "32x1"),
        ({"32x1": (1.2, 1.2), "32x32": (1.1, 1.5)}, "32x32"),
        ({"32x1": (2.0, 0.0)}, "dense"),  # outputs that differ
    ]:
        as_on_a_gpu.clear()
        as_on_a_gpu.update(times)
        row, packed = fastest(times, layer)
        assert row.format == want, times
        assert (packed is None) == (want == "dense")
        assert row.reason == ("dense is faster here" if want == "dense" else "the fastest")
        assert row.rejected.keys() >= times.keys() - {want}
        assert all(tuple(row.rejected[form].values()) == times[form] for form in times.keys() - {want})
        assert want not in row.rejected
        if packed is not None:
            assert tuple(row.measured.values()) == times[want]


def test_what_no_model_expects_anything_of_is_not_timed(monkeypatch):
    monkeypatch.setattr(Chooser, "_measured", lambda *args: 1 / 0)
    layer = nn.Linear(32, 32)
    layer.weight.data *= (torch.rand(8, 32) < 0.4).repeat_interleave(4, 0)
    row, packed = fastest({}, layer)
    assert packed is None
    assert row.reason == "dense: a static model expects no format to come near, so none was timed"
    assert not row.measured
    assert not row.rejected


def test_without_measuring_a_format_has_to_promise_much():
    layer = nn.Linear(4096, 4096)
    with torch.no_grad():
        layer.weight *= (torch.rand(128, 128) < 0.03).repeat_interleave(32, 0).repeat_interleave(32, 1)
    row, packed = fastest({}, layer, measure=False)
    assert isinstance(packed, LinearBlocks)
    assert row.format != "dense"
    assert not row.measured
    with torch.no_grad():
        layer.weight.normal_().mul_((torch.rand(1024, 4096) < 0.8).repeat_interleave(4, 0))
    row, packed = fastest({}, layer, measure=False)
    assert packed is None
    assert row.reason == "dense: no format promises enough"


@pytest.mark.parametrize("put", ["parameter", "buffer", "module"])
def test_a_layer_that_holds_more_stays(put):
    model = mixed()
    if put == "parameter":
        model[5].register_parameter("scale", nn.Parameter(torch.ones(1)))
    elif put == "buffer":
        model[5].register_buffer("scale", torch.ones(1))
    else:
        model[5].scale = nn.Linear(1, 1)
    before = set(model.state_dict())
    _, report = compress(model, prefer="memory", measure=False)
    assert report.layers[3].reason == "it holds scale besides its weight and bias"
    assert set(decompress(model).state_dict()) == before


@pytest.mark.parametrize("change", [compress, compact, decompress])
def test_what_is_made_in_inference_mode_can_be_trained_beside(change):
    model = mixed()
    if change is decompress:
        compress(model, prefer="memory", measure=False)
    with torch.inference_mode():
        change(model, **({"prefer": "memory", "measure": False} if change is compress else {}))
    model[-1].weight.requires_grad_()
    model(X).sum().backward()
    assert not any(tensor.is_inference() for tensor in model.state_dict().values())

"""A compressed model in ONNX: dense with its zeros, channels gone, the same outputs for any number of texts and tokens."""

import numpy as np
import pytest
import torch
from torch import nn

from trisparse import PruningError, compress, export, prune_once, save_pretrained
from trisparse.cli import main
from trisparse.prune.deploy.onnx_export import write_onnx
from trisparse.sparse_ops import LinearBlocks

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture
def small(make_bert):
    """A compressed BERT without half of its feed-forward channels."""
    model = make_bert()
    feed_forward = model.bert.encoder.layer[0].intermediate.dense
    feed_forward.weight.data[::2] = 0
    compress(model, prefer="memory", measure=False)
    return model


def test_a_file_that_onnxruntime_runs(small, tmp_path):
    before = {name: type(module) for name, module in small.named_modules()}
    export(small, tmp_path / "plain", "onnx")
    assert {name: type(module) for name, module in small.named_modules()} == before
    assert {path.name for path in (tmp_path / "plain").iterdir()} >= {"model.onnx", "config.json"}
    assert "quantization_config" not in (tmp_path / "plain" / "config.json").read_text()
    session = onnxruntime.InferenceSession(tmp_path / "plain" / "model.onnx")
    for shape in ((1, 7), (3, 5)):
        ids = torch.randint(20, shape)
        feed = {inputs.name: np.asarray(ids) for inputs in session.get_inputs()}
        with torch.no_grad():
            want = small(**{name: torch.from_numpy(value) for name, value in feed.items()}).logits
        torch.testing.assert_close(torch.from_numpy(session.run(None, feed)[0]), want, rtol=1e-4, atol=1e-5)


def test_removed_channels_stay_away(small, tmp_path):
    import onnx

    write_onnx(small, tmp_path)
    sizes = [tuple(tensor.dims) for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer]
    assert any(32 in size and 64 not in size for size in sizes)
    assert not any(64 in size and 32 in size for size in sizes)


def test_the_command_writes_it(small, tmp_path, capsys):
    save_pretrained(small, tmp_path / "in")
    assert main(["export", str(tmp_path / "in"), str(tmp_path / "out"), "--format", "onnx"]) == 0
    assert (tmp_path / "out" / "model.onnx").exists()


def test_other_exporters_point_there(tmp_path):
    layer = LinearBlocks.from_linear(nn.Linear(16, 8), (4, 1))
    message = "ONNX and TorchScript have no operator for packed weights; use trisparse export IN OUT --format onnx"
    with pytest.raises(RuntimeError, match=message):
        torch.jit.trace(layer, torch.randn(2, layer.in_features))
    with pytest.raises(RuntimeError, match=message), pytest.warns(DeprecationWarning, match="legacy|TorchScript"):
        torch.onnx.export(layer, (torch.randn(2, layer.in_features),), tmp_path / "x.onnx", dynamo=False)


def test_without_an_example_or_a_way_it_is_one_line(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    with pytest.raises(PruningError, match="^example: want inputs of the model to export it by; a Sequential has none"):
        write_onnx(model, tmp_path)

    class Odd(nn.Module):
        def forward(self, x):
            return x if x.sum().item() > 0 else -x

    with pytest.raises(PruningError, match="^format: torch can't export a Odd to onnx: "):
        write_onnx(Odd(), tmp_path, (torch.ones(2, 3),))
    assert not (tmp_path / "model.onnx").exists()


def test_training_a_packed_model_is_warned_of():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 2)).eval()
    prune_once(model, pattern="2:4")
    model, _ = compress(model, prefer="memory", measure=False)
    with pytest.warns(UserWarning, match=r"Linear24: is packed for inference, and its weight does not train; call "):
        model.train()


def test_quantized_weights_are_refused_by_compress_and_compact():
    from trisparse import compact

    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    model[0].weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    for act in (compress, compact):
        with pytest.raises(
            PruningError, match=r"^0: is quantized \(its weight is torch.int8\); prune first, then quantize$"
        ):
            act(model)

"""Exports: a plain dense checkpoint, and compressed-tensors' bitmask read back by its documented layout."""

import json

import pytest
import torch

from trisparse import PruningError, compress, export, prune_once

transformers = pytest.importorskip("transformers")
IDS = {"input_ids": torch.arange(18).view(2, 9)}


@pytest.fixture
def model():
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=60, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128
    )
    model = transformers.BertForSequenceClassification(config).eval()
    prune_once(model, pattern="4x1", target_sparsity=0.8)
    model.bert.encoder.layer[0].intermediate.dense.weight.data[:40] = 0
    model.bert.encoder.layer[0].intermediate.dense.bias.data.normal_()
    compress(model, prefer="memory", measure=False)
    return model


def test_dense(model, tmp_path):
    want = model(**IDS).logits
    export(model, tmp_path, "dense")
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert model.config.quantization_config["quant_method"] == "trisparse"
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(plain(**IDS).logits, want)
    assert plain.bert.encoder.layer[0].intermediate.dense.weight.shape == (128, 60)


def test_bitmask(model, tmp_path):
    from safetensors.torch import load_file

    export(model, tmp_path / "dense", "dense")
    export(model, tmp_path / "bitmask", "sparse-bitmask")
    entry = json.loads((tmp_path / "bitmask" / "config.json").read_text())["quantization_config"]
    assert entry["quant_method"] == "compressed-tensors"
    assert entry["sparsity_config"]["format"] == "sparse-bitmask"
    dense, packed = (load_file(tmp_path / kind / "model.safetensors") for kind in ("dense", "bitmask"))
    names = entry["sparsity_config"]["targets"]
    assert len(names) == 7
    for name in names:
        rows, cols = packed.pop(f"{name}.shape").tolist()
        bits, values = packed.pop(f"{name}.bitmask"), packed.pop(f"{name}.compressed")
        starts = packed.pop(f"{name}.row_offsets").tolist()
        want = torch.zeros(rows, cols)
        for row in range(rows):
            kept = [col for col in range(cols) if int(bits[row, col // 8]) >> (col % 8) & 1]
            want[row, kept] = values[starts[row] : starts[row] + len(kept)]
        assert torch.equal(dense.pop(f"{name}.weight"), want)
    assert dense.keys() == packed.keys()
    assert all(torch.equal(dense[name], packed[name]) for name in dense)


def test_misuse(model, tmp_path):
    with pytest.raises(PruningError, match="format: want dense or sparse-bitmask, got 'onnx'"):
        export(model, tmp_path, "onnx")
    with pytest.raises(PruningError, match="model: want a transformers model"):
        export(torch.nn.Linear(4, 4), tmp_path, "dense")

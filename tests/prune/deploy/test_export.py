"""Exports: a plain dense checkpoint, and formats that nothing reads any more."""

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


def test_parts_with_a_config_of_their_own_say_nothing_either(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.CLIPConfig(
        text_config={**sizes, "vocab_size": 50, "eos_token_id": 2},
        vision_config={**sizes, "image_size": 8, "patch_size": 4},
    )
    model = transformers.CLIPModel(config).eval()
    prune_once(model, pattern="4x1", target_sparsity=0.8, op_names=["layers"])
    compress(model, prefer="memory", measure=False)
    inputs = {"input_ids": torch.arange(5)[None], "pixel_values": torch.randn(1, 3, 8, 8)}
    want = model(**inputs).logits_per_image
    export(model, tmp_path, "dense")
    assert "quantization_config" not in (tmp_path / "config.json").read_text()
    for part in (model, model.text_model, model.vision_model):
        assert part.config.quantization_config["layers"]
    plain = transformers.AutoModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(plain(**inputs).logits_per_image, want)


def test_misuse(model, tmp_path):
    with pytest.raises(PruningError, match="^format: want dense or onnx, got 'gguf'$"):
        export(model, tmp_path, "gguf")
    with pytest.raises(PruningError, match="got 'sparse-bitmask'; compressed-tensors reads it up to 0.14 only, and"):
        export(model, tmp_path, "sparse-bitmask")
    with pytest.raises(PruningError, match="model: want a transformers model"):
        export(torch.nn.Linear(4, 4), tmp_path, "dense")

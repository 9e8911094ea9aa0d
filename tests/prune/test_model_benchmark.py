"""`trisparse-bench --model`."""

import json

import pytest

from trisparse import prune_once
from trisparse.suite import main

transformers = pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path):
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128
    )
    model = transformers.BertForSequenceClassification(config)
    prune_once(model, pattern="4x1", target_sparsity=0.8)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_table_json_and_picture(folder, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    assert main(["--model", str(folder), "--tokens", "1", "200", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "5 x 64x64" in text
    assert "dense is faster here at all" in text
    assert "the model against itself" in text
    result = json.loads((out / "model.json").read_text())
    assert result["tokens"] == [1, 200]
    assert [end["prefer"] for end in result["end_to_end"]] == ["memory", "speed", "dense again"]
    assert all(gain > 0 for end in result["end_to_end"] for gain in end["times_faster"].values())
    assert {layer["format"] for layer in result["layers"]} >= {"dense", "4x1"}
    pytest.importorskip("matplotlib")
    assert (out / "model.png").read_bytes()[:4] == b"\x89PNG"


def test_mistakes_get_one_line(tmp_path, capsys):
    assert main(["--model", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"trisparse-bench: {tmp_path}: want a folder with config.json, found none\n"
    with pytest.raises(SystemExit):
        main(["--model", str(tmp_path), "--suite", "cpu", "--out", str(tmp_path)])
    assert "not allowed with argument" in capsys.readouterr().err

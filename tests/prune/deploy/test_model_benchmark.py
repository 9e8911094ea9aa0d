"""`trisparse bench --model`."""

import json
from types import SimpleNamespace

import pytest
import torch

from trisparse import prune_once
from trisparse.cli import main
from trisparse.prune.costs.model_time import text_examples

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


def test_table_json_and_picture(folder, tmp_path, capsys, monkeypatch):
    times = {"dense_ms": 1.0, "packed_ms": 1.0, "equal": True}
    monkeypatch.setattr("trisparse.prune.deploy.choose_format.time_pair", lambda *_: times)
    monkeypatch.setattr("trisparse.prune.deploy.model_benchmark.times_faster", lambda *_: 0.9)
    out = tmp_path / "deep" / "out"
    assert main(["bench", "--model", str(folder), "--tokens", "1", "200", "--output_dir", str(out)]) == 0
    text = capsys.readouterr().out
    assert "5 x 64x64" in text
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert "no faster than dense at all" in lines["5"]
    assert "no faster than dense at all" in lines["compress(prefer='memory')"]
    assert "dense" not in lines["the"]
    assert "the model against itself" in text
    result = json.loads((out / "model.json").read_text())
    assert result["tokens"] == [1, 200]
    assert [end["prefer"] for end in result["end_to_end"]] == ["memory", "speed", "dense again"]
    assert all(gain > 0 for end in result["end_to_end"] for gain in end["times_faster"].values())
    assert {layer["format"] for layer in result["layers"]} >= {"dense", "4x1"}
    pytest.importorskip("matplotlib")
    assert (out / "model.png").read_bytes()[:4] == b"\x89PNG"


def test_a_model_of_pictures_is_timed_on_them(tmp_path, capsys, monkeypatch):
    times = {"dense_ms": 1.0, "packed_ms": 0.5, "equal": True}
    monkeypatch.setattr("trisparse.prune.deploy.choose_format.time_pair", lambda *_: times)
    shapes = []
    monkeypatch.setattr(
        "trisparse.prune.deploy.model_benchmark.times_faster",
        lambda dense, model, batch, rounds: shapes.append(tuple(batch["pixel_values"].shape)) or 2.0,
    )
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", image_size=32
    )
    model = transformers.ResNetForImageClassification(config)
    prune_once(model, pattern="4x1", target_sparsity=0.8, pruning_op_types=["Conv"])
    model.save_pretrained(tmp_path / "model")
    arguments = ["bench", "--model", str(tmp_path / "model"), "--pictures", "1", "3", "--output_dir", str(tmp_path)]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert shapes == [(1, 3, 32, 32), (3, 3, 32, 32)] * 3
    head, *_, small, fast, _, _ = text[text.index("times faster than dense:") :].splitlines()[1:-1]
    assert head.split() == ["format", "pictures=1", "pictures=3"]
    assert small.split() == ["compress(prefer='memory')", "2.00", "2.00"]
    assert fast.split() == ["compress(prefer='speed')", "2.00", "2.00"]
    assert "resnet.encoder.stages.1.layers.0.layer.0.convolution" in text
    result = json.loads((tmp_path / "model.json").read_text())
    assert result["pictures"] == [1, 3]
    assert "tokens" not in result


@pytest.mark.parametrize(
    ("tokens", "positions", "shape"),
    [
        (1, 512, (1, 1)), (128, 512, (1, 128)), (300, 512, (3, 100)), (1000, 512, (8, 125)), (4096, 512, (32, 128)),
        (131, 512, (131, 1)), (64, 32, (2, 32)), (64, None, (1, 64)),
    ],
)  # fmt: skip
def test_a_batch_has_the_tokens_that_its_column_says(tokens, positions, shape):
    model = torch.nn.Linear(1, 1)
    model.config = SimpleNamespace(vocab_size=50, **({"max_position_embeddings": positions} if positions else {}))
    (example,) = text_examples(model, (tokens,)).values()
    assert example["input_ids"].shape == shape


def test_what_cannot_be_timed_gets_one_line(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    sizes = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)).save_pretrained(tmp_path / "t5")
    for arguments, message in [
        ((folder, tmp_path / "file"), "file"),
        ((folder, tmp_path / "file" / "below"), "file"),
        ((tmp_path / "t5", tmp_path / "out"), "t5: the model does not run on input_ids alone: ValueError: You"),
    ]:
        capsys.readouterr()
        assert main(["bench", "--model", str(arguments[0]), "--tokens", "4", "--output_dir", str(arguments[1])]) == 2
        (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("trisparse bench: error: ")]
        assert message in line


def test_mistakes_get_one_line(tmp_path, capsys):
    assert main(["bench", "--model", str(tmp_path), "--pictures", "0", "--output_dir", str(tmp_path / "out")]) == 2
    assert "pictures: want at least one number of pictures, each 1 or more, got [0]" in capsys.readouterr().err
    assert main(["bench", "--model", str(tmp_path), "--output_dir", str(tmp_path / "out")]) == 2
    assert (
        capsys.readouterr().err == f"trisparse bench: error: {tmp_path}: want a folder with config.json, found none\n"
    )
    assert main(["bench", "--model", str(tmp_path), "--suite", "cpu", "--output_dir", str(tmp_path)]) == 2
    assert "--suite: does not go together with --model" in capsys.readouterr().err

"""The console script `trisparse`."""

import json
import subprocess

import pytest
import torch

from trisparse import from_pretrained, prune_once
from trisparse.prune.command import main

transformers = pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path):
    """A pruned model beside other small files."""
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128
    )
    model = transformers.BertForSequenceClassification(config).eval()
    prune_once(model, pattern="4x1", target_sparsity=0.8)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "vocab.txt").write_text("a")
    (tmp_path / "model" / "optimizer.pt").write_text("large")
    return tmp_path / "model"


def logits(folder):
    return from_pretrained(folder)(input_ids=torch.arange(18).view(2, 9)).logits


def test_compress_inspect_export(folder, tmp_path, capsys):
    assert main(["inspect", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "could be 4x1, 0." in text
    assert "1 files, 0.3 MiB, readable" in text
    small = tmp_path / "small"
    assert main(["compress", str(folder), str(small), "--prefer", "memory", "--tokens", "1", "8"]) == 0
    text = capsys.readouterr().out
    assert "x dense, T=8" in text
    assert "the smallest" in text
    assert "files 0.3 MiB before, 0.2 MiB after" in text
    assert {path.name for path in small.iterdir()} == {
        "config.json", "model.safetensors", "vocab.txt", "compression_report.json",
    }  # fmt: skip
    assert json.loads((small / "compression_report.json").read_text())["prefer"] == "memory"
    torch.testing.assert_close(logits(small), logits(folder))
    capsys.readouterr()
    assert main(["inspect", str(small)]) == 0
    text = capsys.readouterr().out
    assert " 4x1 " in text
    assert "1 files, 0.2 MiB, whole; 7 layers" in text
    assert main(["export", str(small), str(tmp_path / "dense"), "--format", "dense"]) == 0
    assert "as dense, 0.3 MiB" in capsys.readouterr().out
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    torch.testing.assert_close(logits(tmp_path / "dense"), logits(folder))


def test_another_dtype(folder, tmp_path):
    assert (
        main(
            [
                "compress",
                str(folder),
                str(tmp_path / "half"),
                "--prefer",
                "memory",
                "--no_measure",
                "--dtype",
                "bfloat16",
            ]
        )
        == 0
    )
    assert from_pretrained(tmp_path / "half").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nowhere"], "nowhere: want a folder with config.json, found none"),
        (["compress", "nowhere", "out"], "nowhere: want a folder with config.json"),
        (["compress", "{folder}", "{folder}"], "output: want another folder than the input"),
        (
            ["compress", "{folder}", "out", "--tokens", "0"],
            "tokens: want at least one number of tokens, each 1 or more, got [0]",
        ),
    ],
)
def test_mistakes_get_one_line(folder, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert main([argument.format(folder=folder) for argument in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trisparse: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_reader_that_stops_early(folder, script):
    done = subprocess.run(
        f"{script('trisparse')} inspect {folder} | head -1", shell=True, capture_output=True, text=True
    )
    assert "layer" in done.stdout
    assert "Traceback" not in done.stderr

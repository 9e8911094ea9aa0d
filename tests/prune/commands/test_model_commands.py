"""`trisparse compress`, `inspect` and `export`."""

import json
import re
import subprocess

import pytest
import torch

from trisparse import from_pretrained, prune_once
from trisparse.cli import main
from trisparse.prune.commands.tables import print_table

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
    assert "CPU, 1 / 512 tokens" in text
    assert re.search(r"x / ~[0-9.]+x +could be", text)
    assert "1 files, 0.3 MiB, readable" in text
    small = tmp_path / "small"
    assert main(["compress", str(folder), str(small), "--prefer", "memory", "--tokens", "1", "8"]) == 0
    text = capsys.readouterr().out
    assert "x dense, T=8" in text
    assert "the smallest" in text
    assert "files 0.3 -> 0.2 MiB; " in text
    assert {path.name for path in small.iterdir()} == {
        "config.json", "model.safetensors", "vocab.txt", "compression_report.json", ".trisparse.json",
        "README.md",
    }  # fmt: skip
    assert json.loads((small / "compression_report.json").read_text())["prefer"] == "memory"
    torch.testing.assert_close(logits(small), logits(folder))
    capsys.readouterr()
    assert main(["inspect", str(small)]) == 0
    text = capsys.readouterr().out
    assert re.search(r" 4x1 .* ~[0-9.]+x / ~[0-9.]+x", text)
    assert "1 files, 0.2 MiB, whole; 7 layers" in text
    assert main(["export", str(small), str(tmp_path / "dense"), "--format", "dense"]) == 0
    assert "as dense, 0.3 MiB" in capsys.readouterr().out
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    torch.testing.assert_close(logits(tmp_path / "dense"), logits(folder))


def test_an_older_checkpoint_without_safetensors(folder, tmp_path, capsys):
    want = logits(folder)
    torch.save(from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    small = tmp_path / "small"
    assert main(["compress", str(folder), str(small), "--prefer", "memory", "--no_measure"]) == 0
    assert "files 0.3 -> 0.2 MiB; " in capsys.readouterr().out
    assert not (small / "pytorch_model.bin").exists()
    torch.testing.assert_close(logits(small), want)


def test_another_dtype(folder, tmp_path):
    half = tmp_path / "half"
    flags = ["--prefer", "memory", "--no_measure", "--dtype", "bfloat16"]
    assert main(["compress", str(folder), str(half), *flags]) == 0
    assert from_pretrained(half).dtype == torch.bfloat16


def test_inspect_knows_linear_layers_from_other_matrices(tmp_path, capsys):
    config = transformers.GPT2Config(vocab_size=50, n_embd=64, n_layer=1, n_head=4, n_inner=128, eos_token_id=2)
    model = transformers.GPT2LMHeadModel(config)
    kept = (torch.rand(16, 128) < 0.2).repeat_interleave(4, 0)
    model.transformer.h[0].mlp.c_proj.weight.data.t().mul_(kept)
    for part in (model, model.transformer):
        part.save_pretrained(tmp_path)
        assert main(["inspect", str(tmp_path)]) == 0
        lines = {line.split()[0].removeprefix("transformer."): line for line in capsys.readouterr().out.splitlines()}
        assert "64x128" in lines["h.0.mlp.c_proj"]
        assert "could be 4x1, 0." in lines["h.0.mlp.c_proj"]
        assert "192x64" in lines["h.0.attn.c_attn"]
        assert not {"wte", "wpe"} & lines.keys()


def test_a_compressed_checkpoint_is_not_compressed_again(folder, tmp_path, capsys):
    flags = ["--prefer", "memory", "--no_measure"]
    assert main(["compress", str(folder), str(tmp_path / "small"), *flags]) == 0
    assert main(["compress", str(tmp_path / "small"), str(tmp_path / "again")]) == 2
    assert "trisparse compress: error: model: is compressed already" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()
    assert main(["export", str(tmp_path / "small"), str(tmp_path / "dense"), "--format", "dense"]) == 0
    assert not (tmp_path / "dense" / "compression_report.json").exists()
    assert main(["export", str(tmp_path / "small"), str(tmp_path / "bits"), "--format", "sparse-bitmask"]) == 2
    assert (
        "format: want dense or onnx, got 'sparse-bitmask'; compressed-tensors reads it up to" in capsys.readouterr().err
    )
    assert not (tmp_path / "bits").exists()


def test_brackets_in_names_are_printed_as_they_are(capsys):
    print_table(["layer", "n"], [["a[/b].x", "1"], ["[bold]y", "2"]])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["layer", "a[/b].x", "[bold]y"]


def test_models_of_pictures_are_run_on_their_own_example(tmp_path, capsys):
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=8, patch_size=4
    )
    model = transformers.ViTForImageClassification(config)
    model.save_pretrained(tmp_path / "whole")
    for name, layer in model.named_modules():
        if name.endswith(("q_proj", "k_proj", "v_proj")):
            layer.weight.data[:16] = 0
    model.save_pretrained(tmp_path / "zeros")
    for name in ("whole", "zeros"):
        assert main(["compress", str(tmp_path / name), str(tmp_path / f"{name}-small"), "--prefer", "memory"]) == 0
        told = capsys.readouterr().out
        assert "example:" not in told
        removed = "1 of 66 channels and heads removed; "
        assert (removed in told and "; outputs equal" in told) == (name == "zeros")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nowhere"], "nowhere: want a folder with config.json, found none"),
        (["compress", "nowhere", "out"], "nowhere: want a folder with config.json"),
        (["compress", "{folder}", "{folder}"], "OUT: want another folder than MODEL"),
        (
            ["compress", "{folder}", "out", "--tokens", "0"],
            "tokens: want at least one number of tokens, each 1 or more, got [0]",
        ),
        (["compress", "{folder}", "out", "--device", "bogus"], "--device: 'bogus' can't be used: RuntimeError: "),
        (["compress", "{folder}", "out", "--device", "cuda:99"], "--device: 'cuda:99' can't be used: "),
        (["compress", "{folder}", "out", "--device", "meta"], "--device: want one that computes, got 'meta'"),
        (["compress", "{folder}", "out", "--max_shard_size", "abc"], "max_shard_size: want bytes or a text like"),
        (["compress", "{folder}", "{folder}/vocab.txt"], "vocab.txt is a file"),
        (["compress", "{folder}", "{folder}/vocab.txt/below"], "OUT: want a folder, but "),
        (["compress", "{folder}", "/proc/nothing", "--no_measure"], "/proc/nothing"),
        (["export", "{folder}", "{folder}/vocab.txt", "--format", "dense"], "vocab.txt is a file"),
        (["inspect", "{folder}/vocab.txt"], "vocab.txt: want a folder with config.json, found none"),
        (["inspect", "a\0b"], "config.json: cannot be read: embedded null byte"),
    ],
)
def test_mistakes_get_one_line(folder, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert main([argument.format(folder=folder) for argument in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trisparse ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_reader_that_stops_early(folder, script):
    done = subprocess.run(
        f"{script('trisparse')} inspect {folder} | head -1", shell=True, capture_output=True, text=True
    )
    assert "layer" in done.stdout
    assert "Traceback" not in done.stderr


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("command", [["compress", "--no_measure"], ["export", "--format", "dense"]])
def test_only_what_the_same_command_wrote_is_written_over(folder, tmp_path, capsys, monkeypatch, command):
    name, *flags = command
    other = tmp_path / "other"
    from_pretrained(folder).save_pretrained(other)  # a dense model, trained for days
    (other / "notes.txt").write_text("mine")
    kept = contents(other)
    run = [name, str(folder), str(other), *flags]
    with monkeypatch.context() as patch:
        patch.setattr(
            f"trisparse.prune.commands.{name}.from_pretrained", lambda *_, **__: 1 / 0
        )  # refused before it is loaded
        assert main(run) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"trisparse {name}: error: {other}: holds config.json, model.safetensors, which ")
    assert said.endswith("give another folder, or overwrite=True (--overwrite) to replace it")
    assert contents(other) == kept
    assert main([*run, "--overwrite"]) == 0
    assert (other / "notes.txt").read_text() == "mine"
    torch.testing.assert_close(logits(other), logits(folder))
    assert main(run) == 0  # what a user does who runs it again
    (folder / "vocab.txt").rename(folder / "merges.txt")
    assert main(run) == 0
    assert not (other / "vocab.txt").exists()
    assert (other / "merges.txt").exists()
    (other / "merges.txt").write_text("mine")
    assert main(run) == 2
    assert (other / "merges.txt").read_text() == "mine"
    again = {"compress": "export", "export": "compress"}[name]
    more = {"compress": ["--no_measure"], "export": ["--format", "dense"]}[again]
    assert main([again, str(folder), str(other), *more]) == 2


def test_a_failure_at_the_end_leaves_what_was_there(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert main(["compress", str(folder), str(out), "--no_measure"]) == 0
    kept = contents(out)
    for module in ("trisparse.prune.commands.export", "trisparse.prune.deploy.compress_checkpoint"):
        monkeypatch.setattr(f"{module}.copy_small_files", lambda *_: 1 / 0)
    for command in (["compress", "--no_measure"], ["export", "--format", "dense", "--overwrite"]):
        with pytest.raises(ZeroDivisionError):
            main([command[0], str(folder), str(out), *command[1:]])
        assert contents(out) == kept
